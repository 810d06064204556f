// DLPack tensors as views: the memory, strides, types and devices that are taken, and those that are refused with a message that names them.
#include <doctest/doctest.h>
#include <moe_balance/interop/dlpack.hpp>
#include <moe_balance/moe_balance.hpp>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace mb = moe_balance;

namespace {

/// The layout of DLPack's DLTensor (https://dmlc.github.io/dlpack/latest/c_api.html), as any framework declares it.
enum DeviceType : std::int32_t { cpu = 1, cuda = 2, pinned = 3, managed = 13 };
struct Device {
  DeviceType device_type;
  std::int32_t device_id;
};
struct Type {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  Type dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

/// A tensor with its own shape and strides; empty strides are left out.
struct Owned {
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
  Tensor tensor;

  Owned(void* data, Type type, std::vector<std::int64_t> sizes, std::vector<std::int64_t> steps = {})
      : shape(std::move(sizes)), strides(std::move(steps)) {
    tensor = {data, {cpu, 0}, static_cast<std::int32_t>(shape.size()), type, shape.data(), nullptr, 0};
    if (!strides.empty()) tensor.strides = strides.data();
  }
};

constexpr Type float32{2, 32, 1};
constexpr Type int32{0, 32, 1};

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const mb::InvalidArgument& error) {
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("a router reads and writes DLPack tensors in place") {
  std::vector<float> logits{9, 9, 0, 1, 2, 3, 9, 9, 3, 2, 1, 0};  // two rows of four in rows of six, two elements in
  std::vector<float> weights(4);
  std::vector<std::int32_t> ids(4);
  std::vector<float> bias{0, 0, 0, 0};
  Owned x(logits.data(), float32, {2, 4}, {6, 1});
  x.tensor.byte_offset = 2 * sizeof(float);
  const Owned w(weights.data(), float32, {2, 2});
  const Owned experts(ids.data(), int32, {2, 2});
  const Owned b(bias.data(), float32, {4});
  const mb::VectorView<float> bias_view = mb::vector_of_dlpack<float>("route", "bias", b.tensor);
  const mb::Router router{mb::Softmax{}, mb::TopK<2>{}};
  router.route({.logits = mb::matrix_of_dlpack("route", "logits", x.tensor),
                .experts = mb::matrix_of_dlpack<std::int32_t>("route", "experts", experts.tensor),
                .weights = mb::matrix_of_dlpack("route", "weights", w.tensor),
                .bias = {bias_view.data, static_cast<int>(bias_view.size)}},
               {}, mb::Host{.threads = 1});
  CHECK(ids == std::vector<std::int32_t>{3, 2, 0, 1});
  CHECK(weights[0] + weights[1] == doctest::Approx(1.0f));
}

TEST_CASE("every element type of logits is taken, others are refused by name") {
  double data[4] = {};
  const auto type_of = [&](Type type) {
    return mb::matrix_of_dlpack("forward", "logits", Owned(data, type, {1, 4}).tensor).type;
  };
  CHECK(type_of({2, 32, 1}) == mb::DataType::float32);
  CHECK(type_of({4, 16, 1}) == mb::DataType::bfloat16);
  CHECK(type_of({2, 16, 1}) == mb::DataType::float16);
  CHECK(type_of({2, 64, 1}) == mb::DataType::float64);
  for (const Type type : {Type{0, 32, 1}, Type{2, 32, 2}, Type{2, 8, 1}, Type{4, 32, 1}}) {
    CHECK(refusal([&] { (void)type_of(type); }).rfind("moe_balance: forward: logits.dtype is ", 0) == 0);
  }
}

TEST_CASE("ids, counts and masks must have their type") {
  std::int64_t data[4] = {};
  const Owned ids64(data, {0, 64, 1}, {2, 2});
  CHECK(refusal([&] { (void)mb::matrix_of_dlpack<std::int32_t>("route", "experts", ids64.tensor); }) ==
        "moe_balance: route: experts.dtype is int64; allowed: int32");
  CHECK(mb::matrix_of_dlpack<std::int64_t>("permutation", "row_of_slot", ids64.tensor).columns == 2);
  CHECK(mb::vector_of_dlpack<const std::uint8_t>("route", "active", Owned(data, {6, 8, 1}, {4}).tensor).size == 4);
  CHECK(mb::vector_of_dlpack<const std::uint8_t>("route", "active", Owned(data, {1, 8, 1}, {4}).tensor).size == 4);
  CHECK(refusal([&] {
          (void)mb::vector_of_dlpack<std::uint8_t>("route", "active", Owned(data, {0, 8, 1}, {4}).tensor);
        }) != "accepted");
  CHECK(refusal([&] {
          (void)mb::vector_of_dlpack<std::int64_t>("route", "counts", Owned(data, {6, 8, 1}, {4}).tensor);
        }) != "accepted");
}

TEST_CASE("only rows of neighbouring elements are taken") {
  float data[12] = {};
  const auto stride_of = [&](std::vector<std::int64_t> shape, std::vector<std::int64_t> strides) {
    return mb::matrix_of_dlpack("route", "logits", Owned(data, float32, std::move(shape), std::move(strides)).tensor).stride;
  };
  CHECK(stride_of({3, 4}, {}) == 4);
  CHECK(stride_of({2, 4}, {6, 1}) == 6);
  CHECK(stride_of({1, 4}, {77, 1}) == 4);  // one row: its stride means nothing
  CHECK(stride_of({3, 1}, {2, 55}) == 2);  // one column: its stride means nothing
  CHECK(stride_of({0, 4}, {0, 1}) == 4);
  CHECK(refusal([&] {
          (void)stride_of({4, 3}, {1, 4});
        }) == "moe_balance: route: logits.strides[1] is 4; allowed: 1: rows must be contiguous");
  CHECK(refusal([&] {
          (void)stride_of({3, 4}, {2, 1});
        }) == "moe_balance: route: logits.strides[0] is 2; allowed: 4 (the columns) or more");
  CHECK(refusal([&] { (void)stride_of({3, 4}, {-4, 1}); }) != "accepted");
  const Owned spread(data, float32, {3}, {2});
  CHECK(refusal([&] { (void)mb::vector_of_dlpack<float>("route", "bias", spread.tensor); }) ==
        "moe_balance: route: bias.strides[0] is 2; allowed: 1: contiguous");
}

TEST_CASE("another number of dimensions is refused") {
  float data[4] = {};
  CHECK(refusal([&] { (void)mb::matrix_of_dlpack("route", "logits", Owned(data, float32, {4}).tensor); }) ==
        "moe_balance: route: logits.ndim is 1; allowed: 2");
  CHECK(refusal([&] {
          (void)mb::matrix_of_dlpack("route", "logits", Owned(data, float32, {1, 2, 2}).tensor);
        }) != "accepted");
  CHECK(refusal([&] {
          (void)mb::vector_of_dlpack<float>("route", "bias", Owned(data, float32, {1, 4}).tensor);
        }) != "accepted");
  CHECK(refusal([&] { (void)mb::matrix_of_dlpack("route", "logits", Owned(data, float32, {-1, 4}).tensor); }) != "accepted");
}

TEST_CASE("memory must lie where the call runs") {
  float data[4] = {};
  Owned x(data, float32, {1, 4});
  const mb::DlpackDevice first{mb::DlpackDevice::Kind::cuda, 0}, second{mb::DlpackDevice::Kind::cuda, 1};
  const auto taken = [&](DeviceType type, int id, const mb::DlpackDevice& device) {
    x.tensor.device = {type, id};
    return refusal([&] { (void)mb::matrix_of_dlpack("route", "logits", x.tensor, device); }) == "accepted";
  };
  CHECK(taken(cpu, 0, {}));
  CHECK(taken(pinned, 0, {}));
  CHECK_FALSE(taken(cuda, 0, {}));
  CHECK_FALSE(taken(managed, 0, {}));
  CHECK(taken(cuda, 1, second));
  CHECK_FALSE(taken(cuda, 1, first));
  CHECK(taken(managed, 0, second));
  CHECK_FALSE(taken(cpu, 0, first));
  CHECK_FALSE(taken(pinned, 0, first));
  CHECK(refusal([&] { (void)mb::matrix_of_dlpack("route", "logits", x.tensor, second); }) ==
        "moe_balance: route: logits.device is type 3 with id 0; allowed: device type 2 (CUDA) with id 1, or 13 (managed)");
}

TEST_CASE("a tensor without memory stays one, whatever its offset") {
  Owned x(nullptr, float32, {0, 4});
  x.tensor.byte_offset = 64;
  CHECK(mb::matrix_of_dlpack("route", "logits", x.tensor).data == nullptr);
}
