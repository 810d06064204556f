// Runs forward and backward on the GPU, compares every output bit for bit with the CPU engine's, then runs them again and again and compares
// every output bit for bit with the first time's. Inputs are random, full of ties, or awkward (NaN, infinities, subnormals).
//   repeat [--repeats N] [--small]     N repeats of each problem (100); --small: few and small problems, for compute-sanitizer
// Prints one line a router; exit status 1 on any difference, 77 without a GPU.
#include "step.hpp"

#include <moe_balance/moe_balance.cuh>

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace microbenchmark;

enum class Values : std::uint8_t { random, ties, awkward };

/// Logit `index` of a matrix of these values.
[[nodiscard]] float logit(Values values, std::uint64_t index) {
  const float normal = pseudo_normal(index, 11);
  if (values == Values::random) return normal;
  if (values == Values::ties) return static_cast<float>(static_cast<int>(2 * normal)) * 0.5f;
  using Limits = std::numeric_limits<float>;
  const float special[] = {Limits::quiet_NaN(),  Limits::infinity(), -Limits::infinity(), -0.0f,
                           Limits::denorm_min(), Limits::max(),      Limits::lowest(),    0.0f};
  const auto choice = static_cast<int>(1000 * (pseudo_normal(index, 12) + 4));
  return choice % 4 == 0 ? special[choice / 4 % 8] : normal;
}

/// Copies between the host and where calls run; calls there are finished before memory is read.
template <class Place>
struct Copy;
template <>
struct Copy<mb::Host> {
  static void in(void* to, const void* from, std::size_t bytes, const mb::Host&) { std::memcpy(to, from, bytes); }
  static void out(void* to, const void* from, std::size_t bytes, const mb::Host&) { std::memcpy(to, from, bytes); }
  static void fill(void* to, int value, std::size_t bytes, const mb::Host&) { std::memset(to, value, bytes); }
};
template <>
struct Copy<cudaStream_t> {
  static void in(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    mb::check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "copying to the device");
    mb::check_cuda(cudaStreamSynchronize(stream), "copying to the device");
  }
  static void out(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    mb::check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "copying from the device");
    mb::check_cuda(cudaStreamSynchronize(stream), "running forward and backward");
  }
  static void fill(void* to, int value, std::size_t bytes, cudaStream_t stream) {
    mb::check_cuda(cudaMemsetAsync(to, value, bytes, stream), "filling device memory");
  }
};

/// What a problem reads: the same for both places and every repeat.
struct Given {
  std::vector<std::byte> logits;
  std::vector<float> grad_weights, bias;

  Given(const Problem& problem, int k, Values values)
      : logits(static_cast<std::size_t>(problem.tokens * problem.experts) * mb::size_of(problem.type)),
        grad_weights(static_cast<std::size_t>(problem.tokens * k)),
        bias(static_cast<std::size_t>(problem.experts)) {
    const auto elements = static_cast<std::uint64_t>(problem.tokens * problem.experts);
    for (std::uint64_t i = 0; i < elements; ++i) store(logits.data(), problem.type, i, logit(values, i));
    for (std::size_t i = 0; i < grad_weights.size(); ++i) grad_weights[i] = pseudo_normal(i, 13);
    for (std::size_t i = 0; i < bias.size(); ++i) bias[i] = 0.1f * pseudo_normal(i, 14);
  }
};

/// The memory of one problem in one place.
template <class Router, class Place>
class Run {
 public:
  Run(const Router& router, const Problem& problem, const Given& given, const Place& place)
      : router_(router),
        problem_(problem),
        place_(place),
        logits_(given.logits.size(), place),
        grad_weights_(given.grad_weights.size(), place),
        bias_(problem.experts, 1, place),
        load_(router, problem.experts, 1, place),
        saved_(router, shape(), place),
        workspace_(router.workspace_bytes(shape()), place),
        weights_(given.grad_weights.size(), place),
        ids_(given.grad_weights.size(), place),
        grad_logits_(given.logits.size(), place) {
    Copy<Place>::in(logits_.data(), given.logits.data(), logits_.bytes(), place);
    Copy<Place>::in(grad_weights_.data(), given.grad_weights.data(), grad_weights_.bytes(), place);
    Copy<Place>::in(bias_.data(), given.bias.data(), given.bias.size() * sizeof(float), place);
  }

  /// Every output's bytes after one forward and one backward into poisoned memory: ids, weights, load, saved sums, gradient.
  [[nodiscard]] std::vector<std::vector<std::byte>> outputs() const {
    const std::size_t load_bytes = static_cast<std::size_t>(load_.ref().row_size()) * sizeof(std::int64_t);
    Copy<Place>::fill(load_.data(), 0, load_bytes, place_);
    for (const auto& [data, bytes] : poisoned()) {
      if (bytes > 0) Copy<Place>::fill(data, 0xa5, bytes, place_);
    }
    const mb::ConstAnyMatrix logits{logits_.data(), problem_.type, problem_.tokens, problem_.experts, problem_.experts};
    const mb::AnyMatrix grad_logits{grad_logits_.data(), problem_.type, problem_.tokens, problem_.experts, problem_.experts};
    const mb::MatrixView ids(ids_.data(), problem_.tokens, Router::k);
    router_.forward({.logits = logits,
                     .experts = ids,
                     .weights = mb::MatrixView(weights_.data(), problem_.tokens, Router::k),
                     .bias = bias_.ref(),
                     .load = load_.ref(),
                     .saved = saved_.ref()},
                    workspace(), place_);
    router_.backward({.logits = logits,
                      .experts = ids,
                      .grad_weights = mb::MatrixView(grad_weights_.data(), problem_.tokens, Router::k),
                      .grad_logits = grad_logits,
                      .saved = saved_.ref()},
                     workspace(), place_);
    std::vector<std::vector<std::byte>> result{read(load_.data(), load_bytes)};
    for (const auto& [data, bytes] : poisoned()) result.push_back(read(data, bytes));
    return result;
  }

 private:
  [[nodiscard]] mb::Shape shape() const { return {problem_.tokens, problem_.experts, 1}; }
  [[nodiscard]] mb::Workspace workspace() const { return {workspace_.data(), workspace_.bytes()}; }
  [[nodiscard]] std::vector<std::pair<void*, std::size_t>> poisoned() const {
    return {{ids_.data(), ids_.bytes()},
            {weights_.data(), weights_.bytes()},
            {saved_.ref().data, saved_.ref().bytes},
            {grad_logits_.data(), grad_logits_.bytes()}};
  }
  [[nodiscard]] std::vector<std::byte> read(const void* data, std::size_t bytes) const {
    std::vector<std::byte> content(bytes);
    if (bytes > 0) Copy<Place>::out(content.data(), data, bytes, place_);
    return content;
  }

  Router router_;
  Problem problem_;
  Place place_;
  mb::Buffer<std::byte, Place> logits_;
  mb::Buffer<float, Place> grad_weights_;
  mb::Bias<Place> bias_;
  mb::Load<Place> load_;
  mb::Saved<Place> saved_;
  mb::Buffer<std::byte, Place> workspace_;
  mb::Buffer<float, Place> weights_;
  mb::Buffer<std::int32_t, Place> ids_;
  mb::Buffer<std::byte, Place> grad_logits_;
};

struct Options {
  int repeats = 100;
  bool small = false;
};

/// Prints what differs first; true when nothing does.
[[nodiscard]] bool same(const std::vector<std::vector<std::byte>>& got, const std::vector<std::vector<std::byte>>& want,
                        const std::string& name, const std::string& against) {
  constexpr const char* names[] = {"load", "ids", "weights", "saved sums", "gradient"};
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (got[i] == want[i]) continue;
    std::size_t at = 0;
    while (got[i][at] == want[i][at]) ++at;
    std::printf("DIFFERENT %s: %s, byte %zu of %zu, against %s\n", name.c_str(), names[i], at, want[i].size(),
                against.c_str());
    return false;
  }
  return true;
}

template <class Router>
[[nodiscard]] bool check_problem(const Router& router, const std::string& name, const Problem& problem, Values values,
                                 const Options& options, cudaStream_t stream) {
  const Given given(problem, Router::k, values);
  const Run<Router, cudaStream_t> device(router, problem, given, stream);
  const auto first = device.outputs();
  const std::string full_name = name_of(problem, name) + "/values" + std::to_string(static_cast<int>(values));
  if (!same(first, Run<Router, mb::Host>(router, problem, given, mb::Host{}).outputs(), full_name, "the CPU")) return false;
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    if (!same(device.outputs(), first, full_name, "its first run, in repeat " + std::to_string(repeat))) return false;
  }
  return true;
}

template <class Router>
[[nodiscard]] bool check_router(const Router& router, const std::string& name, const Options& options, cudaStream_t stream) {
  int problems = 0;
  int different = 0;
  const auto try_problem = [&](std::int64_t tokens, int experts, mb::DataType type, Values values) {
    if (!serves(router, experts)) return;
    ++problems;
    if (!check_problem(router, name, {Work::backward, tokens, experts, type}, values, options, stream)) ++different;
  };
  const std::vector<int> expert_choices =
      options.small ? std::vector{64, 256, 896} : std::vector{8, 64, 120, 256, 512, 896, 2048};
  for (const int experts : expert_choices) {
    for (const mb::DataType type : element_types) {
      for (const Values values : {Values::random, Values::ties, Values::awkward}) {
        try_problem(options.small ? 37 : 500, experts, type, values);
      }
    }
  }
  if (!options.small) try_problem(32768, 256, mb::DataType::float32, Values::random);
  std::printf("%s: %d problems, each on the CPU and %d times on the GPU: %d differ\n", name.c_str(), problems,
              options.repeats + 1, different);
  return different == 0 && problems > 0;
}

[[nodiscard]] bool check_all(const Options& options, cudaStream_t stream) {
  bool good = check_router(mb::Router{mb::Softmax{}, mb::TopK<8>{}, mb::Combine{mb::AuxLoss{}, mb::ZLoss{}}}, "softmax_top8",
                           options, stream);
  good = check_router(mb::Router{mb::Sigmoid{}, mb::GroupLimitedTopK<8>{.groups = 8, .groups_kept = 4},
                                 mb::Combine{mb::LossFreeBias{}, mb::AuxLoss{}}},
                      "sigmoid_groups_top8", options, stream) &&
         good;
  good = check_router(mb::Router{mb::Sigmoid{}, mb::TopK<8>{}, mb::QuantileBias{.bins = 200}}, "sigmoid_top8_quantile", options,
                      stream) &&
         good;
  return check_router(mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<4>{}}, "softmax_over_selected_top4", options, stream) &&
         good;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--small") == 0) {
      options.small = true;
    } else if (std::strcmp(argv[i], "--repeats") == 0 && i + 1 < argc) {
      options.repeats = std::atoi(argv[++i]);
    } else {
      std::printf("usage: repeat [--repeats N] [--small]\n");
      return 2;
    }
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("SKIPPED: no CUDA device\n");
    return 77;
  }
  try {
    cudaStream_t stream = nullptr;
    mb::check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    const bool good = check_all(options, stream);
    mb::check_cuda(cudaStreamDestroy(stream), "destroying a stream");
    return good ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
}
