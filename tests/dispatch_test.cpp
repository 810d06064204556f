// Dispatch on the CPU: against plain loops, and the same bits for any number of threads and any instruction set.
#include "engine_host.hpp"

#include "bodies/dispatch.hpp"
#include "bodies/permute.hpp"

#include <sys/mman.h>

#include <memory>
#include <utility>

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(dispatch_random, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_corners, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_identity, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_identity_anywhere, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_many, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_most_experts, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_sorting, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_very_many_experts, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_most_sorted_experts, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_fixed_rows, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_sum_order, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_round_trip, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_hidden_sizes, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_copies, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_disagreeing, HostEngine);

TEST_CASE("dispatch: blocks of a GPU have as many tiles as their shared memory holds") {
  using mb::PlaceSlots;
  for (const std::size_t available : {65536u, 101376u, 166912u, 232448u}) {
    CAPTURE(available);
    const std::int64_t most = PlaceSlots::most_experts(available);
    for (int experts = 1; experts <= mb::max_counted_experts; ++experts) {
      const int tiles = PlaceSlots::tiles_that_fit(experts, available);
      REQUIRE((tiles > 0) == (experts <= most));
      REQUIRE((tiles == 0 || PlaceSlots::shared_bytes(experts, tiles) <= available));
      const int wanted = experts <= 2048 ? 16 : 4;
      REQUIRE((tiles == wanted || PlaceSlots::shared_bytes(experts, tiles == 0 ? 1 : 2 * tiles) > available));
    }
  }
  CHECK(PlaceSlots::tiles_that_fit(mb::max_counted_experts, 166912) == 4);  // sm_80
  CHECK(PlaceSlots::tiles_that_fit(mb::max_experts, 101376) == 4);          // sm_86, sm_89
}

TEST_CASE("dispatch: as many slots of a range as 16 bits count for eight ranges, and for one, and more") {
  for (const std::int64_t tokens : {8191, 8192, 65528, 65536, 200000}) {  // some of whose slots are empty
    for (const int ranges : {1, 8}) {
      CAPTURE(tokens);
      CAPTURE(ranges);
      const DispatchProblem p = dispatch_problem(11, tokens, 1, 1, 1, 4);
      check_dispatch(p, run_dispatch(HostEngine{.threads = ranges}, p));
    }
  }
}

TEST_CASE("dispatch: any number of threads and any instruction set give the same bits") {
  for (const mb::DataType type : {mb::DataType::float32, mb::DataType::float16}) {
    DispatchProblem p = dispatch_problem(21, 7000, 8, 24, 6, 16);
    p.type = type;
    Random random(22);
    fill_values(p, random);
    const DispatchResults one = run_dispatch(HostEngine{.threads = 1}, p);
    for (const int threads : {2, 3, 7}) CHECK(run_dispatch(HostEngine{.threads = threads}, p) == one);
    p.sorts = true;
    for (const int threads : {1, 2, 3, 7}) CHECK(run_dispatch(HostEngine{.threads = threads}, p) == one);
    p.sorts = false;
    for (const auto set : {mb::InstructionSet::baseline, mb::InstructionSet::x86_64_v3, mb::InstructionSet::x86_64_v4}) {
      CHECK(run_dispatch(HostEngine{.threads = 2, .instructions = set}, p) == one);
    }
  }
}

TEST_CASE("dispatch: rows that do not stay in a CPU's cache, and are written past it, have the same bits") {
  constexpr std::int64_t k = 8;
  for (const mb::DataType type : {mb::DataType::float32, mb::DataType::bfloat16}) {
    const std::int64_t hidden = type == mb::DataType::float32 ? 1036 : 1032;  // no multiple of what is moved at once
    const auto row_bytes = hidden * static_cast<std::int64_t>(mb::size_of(type));
    DispatchProblem p = dispatch_problem(28, mb::dispatch_tuning.bytes_in_cache / row_bytes / k + 1, k, 24, 1, 16);
    p.hidden = hidden;
    p.type = type;
    const mb::AnyMatrix rows(nullptr, type, p.rows(), hidden, hidden);
    CHECK(mb::writes_past_cache<mb::SerialTile>(rows, p.slots(), true) == mb::cpu_stores_past_cache);
    CHECK(!mb::writes_past_cache<mb::SerialTile>(rows, p.slots(), false));
    CHECK(!mb::writes_past_cache<mb::SerialTile>(rows, p.slots() / 2, true));
    const PermutationOracle order(p);
    Random random(29);
    BytesOfRows copied{p, {0, 0}};
    copied.fill(order, random);
    check_copies<HostEngine>(copied, order);

    // Products by powers of two are exact, so that each row is one of two images of its token.
    const auto states = rounded_to(type, random.normals<double>(static_cast<std::size_t>(p.tokens * hidden)));
    const double factors[] = {-2, 4};
    Bytes images[2];
    for (int i = 0; i < 2; ++i) {
      std::vector<double> image = states;
      for (double& value : image) value *= factors[i];
      images[i] = encoded(type, image);
    }
    std::vector<float> weights;
    for (std::int64_t slot = 0; slot < p.slots(); ++slot)
      weights.push_back(static_cast<float>(factors[random.integer(0, 1)]));
    Bytes want(static_cast<std::size_t>(p.rows() * row_bytes));
    for (std::int64_t row = 0; row < p.rows(); ++row) {
      const std::int64_t slot = order.slot_of_row[static_cast<std::size_t>(row)];
      if (slot < 0) continue;
      const Bytes& image = images[weights[static_cast<std::size_t>(slot)] == -2.0f ? 0 : 1];
      std::copy_n(image.begin() + slot / k * row_bytes, row_bytes, want.begin() + row * row_bytes);
    }
    const Bytes from = encoded(type, states);
    const mb::ConstAnyMatrix tokens(from.data(), type, p.tokens, hidden, hidden);
    const mb::ConstAnyMatrix scale = mb::MatrixView<const float>(weights.data(), p.tokens, k);
    const mb::MatrixView<const std::int64_t> row_of_slot(order.row_of_slot.data(), p.tokens, k);
    const mb::VectorView<const std::int64_t> slot_of_row(order.slot_of_row.data(), p.rows());
    const mb::Host three{.threads = 3};
    Bytes got(want.size(), 0xab);
    const mb::AnyMatrix to(got.data(), type, p.rows(), hidden, hidden);
    REQUIRE(mb::rows_hold_packs(tokens));
    REQUIRE(mb::rows_hold_packs(to));
    mb::permute({.hidden = tokens,
                 .slot_of_row = slot_of_row,
                 .permuted = to,
                 .top_k = k,
                 .scale = scale,
                 .row_of_slot = row_of_slot},
                {}, three);
    CHECK(got == want);

    const std::int64_t stride = hidden + 8;
    const auto stride_bytes = stride * static_cast<std::int64_t>(mb::size_of(type));
    Bytes apart(static_cast<std::size_t>(p.rows() * stride_bytes), 0xab);
    const mb::AnyMatrix rows_apart(apart.data(), type, p.rows(), hidden, stride);
    REQUIRE(mb::rows_hold_packs(rows_apart));
    mb::combine_backward({.grad_combined = tokens,
                          .row_of_slot = row_of_slot,
                          .slot_of_row = slot_of_row,
                          .grad_permuted = rows_apart,
                          .weights = scale},
                         {}, three);
    bool same = true;
    for (std::int64_t row = 0; row < p.rows(); ++row) {
      const auto begin = apart.begin() + row * stride_bytes;
      same = same && std::equal(begin, begin + row_bytes, want.begin() + row * row_bytes) &&
             std::all_of(begin + row_bytes, begin + stride_bytes, [](std::uint8_t byte) { return byte == 0xab; });
    }
    CHECK(same);
  }
}

TEST_CASE("dispatch: float64, as other types") {
  for (const mb::Padding padding : {mb::Padding::zero, mb::Padding::untouched}) {
    DispatchProblem p = dispatch_problem(26, 60, 3, 8, 37, 4);
    p.type = mb::DataType::float64;
    p.factor_type = mb::DataType::float64;
    p.padding = padding;
    p.stride_excess = 2;
    Random random(27);
    fill_values(p, random);
    check_dispatch(p, run_dispatch(HostEngine{.threads = 2}, p));
  }
}

/// sum of g * combine(f(permute(x, scale)), weights) in float64, f(y) = y * y + y; its gradients by the library's backward calls.
struct Layer {
  DispatchProblem p;
  std::vector<double> scale;
  std::vector<std::int64_t> row_of_slot;
  std::vector<std::int64_t> slot_of_row;

  [[nodiscard]] mb::ConstAnyMatrix matrix(const std::vector<double>& values, std::int64_t columns) const {
    const auto rows = static_cast<std::int64_t>(values.size()) / columns;
    return mb::MatrixView<const double>(values.data(), rows, columns);
  }
  [[nodiscard]] mb::AnyMatrix matrix(std::vector<double>& values, std::int64_t columns) const {
    return mb::MatrixView<double>(values.data(), static_cast<std::int64_t>(values.size()) / columns, columns);
  }
  [[nodiscard]] mb::VectorView<const std::int64_t> slots() const { return {slot_of_row.data(), p.rows()}; }
  [[nodiscard]] mb::MatrixView<const std::int64_t> rows() const { return {row_of_slot.data(), p.tokens, p.k}; }

  [[nodiscard]] std::vector<double> permuted() const {
    std::vector<double> y(static_cast<std::size_t>(p.rows() * p.hidden));
    mb::permute({.hidden = matrix(p.hidden_states, p.hidden),
                 .slot_of_row = slots(),
                 .permuted = matrix(y, p.hidden),
                 .top_k = static_cast<int>(p.k),
                 .scale = matrix(scale, p.k)},
                {}, mb::Host{});
    return y;
  }
  [[nodiscard]] double loss() const {
    std::vector<double> y = permuted();
    for (double& value : y) value = value * value + value;
    std::vector<double> out(p.grad_combined.size());
    mb::combine({.permuted = matrix(std::as_const(y), p.hidden),
                 .row_of_slot = rows(),
                 .combined = matrix(out, p.hidden),
                 .weights = matrix(p.weights, p.k)},
                {}, mb::Host{});
    double sum = 0;
    for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * p.grad_combined[i];
    return sum;
  }
};

TEST_CASE("dispatch: gradients are the central differences of float64 values") {
  Layer layer{dispatch_problem(24, 7, 3, 5, 6, 4), {}, {}, {}};
  DispatchProblem& p = layer.p;
  Random random(25);
  layer.scale = random.normals<double>(p.ids.size());
  const DispatchResults order = run_dispatch(HostEngine{}, p);
  layer.row_of_slot = order.row_of_slot;
  layer.slot_of_row = order.slot_of_row;

  const std::vector<double> y = layer.permuted();
  std::vector<double> activated = y;
  for (double& value : activated) value = value * value + value;
  std::vector<double> grad_outputs(y.size());
  std::vector<double> grad_weights(p.ids.size());
  mb::combine_backward({.grad_combined = layer.matrix(std::as_const(p.grad_combined), p.hidden),
                        .row_of_slot = layer.rows(),
                        .slot_of_row = layer.slots(),
                        .grad_permuted = layer.matrix(grad_outputs, p.hidden),
                        .weights = layer.matrix(std::as_const(p.weights), p.k),
                        .permuted = layer.matrix(std::as_const(activated), p.hidden),
                        .grad_weights = layer.matrix(grad_weights, p.k)},
                       {}, mb::Host{});
  for (std::size_t i = 0; i < y.size(); ++i) grad_outputs[i] *= 2 * y[i] + 1;
  std::vector<double> grad_hidden(p.hidden_states.size());
  std::vector<double> grad_scale(p.ids.size());
  mb::permute_backward({.grad_permuted = layer.matrix(std::as_const(grad_outputs), p.hidden),
                        .row_of_slot = layer.rows(),
                        .grad_hidden = layer.matrix(grad_hidden, p.hidden),
                        .scale = layer.matrix(std::as_const(layer.scale), p.k),
                        .hidden = layer.matrix(std::as_const(p.hidden_states), p.hidden),
                        .grad_scale = layer.matrix(grad_scale, p.k)},
                       {}, mb::Host{});

  const auto check = [&](const char* what, std::vector<double>& values, const std::vector<double>& gradient) {
    CAPTURE(what);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double kept = values[i];
      const double step = 1e-6;
      values[i] = kept + step;
      const double above = layer.loss();
      values[i] = kept - step;
      const double below = layer.loss();
      values[i] = kept;
      CHECK(std::abs((above - below) / (2 * step) - gradient[i]) <= 1e-7 * (1 + std::abs(gradient[i])));
    }
  };
  check("hidden", p.hidden_states, grad_hidden);
  check("weights", p.weights, grad_weights);
  check("scale", layer.scale, grad_scale);
}

TEST_CASE("dispatch: sizes beyond 2^31 and 2^32 do not wrap") {
  const std::int64_t tokens = std::int64_t{1} << 33;
  CHECK(mb::permutation_rows(tokens, 8, 256) == tokens * 8);
  CHECK(mb::permutation_rows(tokens, 8, 256, 128) == tokens * 8 + 254 * 128);
  CHECK(mb::permutation_rows(tokens + 1, 3, 2, 5) == (3 * tokens + 3 + 2 * 4) / 5 * 5);
  CHECK(mb::permutation_workspace_bytes(tokens, 8, 4096) == 16 + std::size_t{128} * 4096 * 4);
  CHECK(mb::permutation_rows(3, 1, 100, 64) == 192);
  CHECK(mb::permutation_rows(0, 4, 10, 64) == 0);

  // The ranges of parts and the offsets of a row so far behind that 32 bits would wrap.
  const mb::ItemRange last = mb::range_of_part(tokens * 8, 127, 128);
  CHECK(last.last == tokens * 8);
  CHECK(last.last - last.first == tokens / 16);
  CHECK(last.last - last.first <= mb::dispatch_tuning.most_slots_per_part);
  auto* const base = reinterpret_cast<std::int32_t*>(std::uintptr_t{1} << 12);  // never read
  const mb::SlotView<std::int32_t> slots(mb::MatrixView<std::int32_t>(base, tokens, 8, 9));
  CHECK(&slots[tokens * 8 - 1] - base == (tokens - 1) * 9 + 7);
  const mb::AnyMatrix rows(base, mb::DataType::float32, tokens, 7168, 7168);
  CHECK(mb::row_pointer<float>(rows, tokens - 1) - reinterpret_cast<float*>(base) == (tokens - 1) * 7168);
}

/// Address space for `size` elements, of which only pages that are touched take memory; null where the system refuses.
template <class T>
std::unique_ptr<T, void (*)(T*)> reserved(std::int64_t size) {
  // In front of the elements a page holds the length, for munmap.
  constexpr std::size_t page = 4096;
  const std::size_t bytes = page + static_cast<std::size_t>(size) * sizeof(T);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return {nullptr, [](T*) {}};
  *static_cast<std::size_t*>(memory) = bytes;
  return {reinterpret_cast<T*>(static_cast<std::byte*>(memory) + page), [](T* first) {
            void* start = reinterpret_cast<std::byte*>(first) - page;
            munmap(start, *static_cast<std::size_t*>(start));
          }};
}

TEST_CASE("dispatch: T * K * H beyond 2^31 and 2^32: the last token and the last row are found where they lie") {
  constexpr std::int64_t tokens = (std::int64_t{1} << 20) + 3;
  constexpr std::int64_t k = 8;
  constexpr std::int64_t hidden = 640;
  constexpr std::int64_t rows = tokens * k;
  static_assert(rows * hidden > std::int64_t{1} << 32);
  const auto states = reserved<float>(tokens * hidden);
  const auto outputs = reserved<float>(rows * hidden);
  const auto slot_of_row = reserved<std::int64_t>(rows);
  const auto row_of_slot = reserved<std::int64_t>(rows);
  const auto dots = reserved<float>(rows);
  if (!states || !outputs || !slot_of_row || !row_of_slot || !dots) {
    WARN_MESSAGE(false, "left out, and nothing is proved: the system does not reserve 24 GiB of address space");
    return;
  }
  // One block for each item, so that the last block does the last item alone.
  const auto last_of = [](std::int64_t items, const auto& body, const auto& problem) {
    body(mb::HostBlock{nullptr, items - 1, items}, mb::SerialTile{}, problem);
  };
  const mb::AnyMatrix state_view = mb::MatrixView<float>(states.get(), tokens, hidden);
  const mb::AnyMatrix row_view = mb::MatrixView<float>(outputs.get(), rows, hidden);
  const mb::MatrixView<const std::int64_t> rows_of(row_of_slot.get(), tokens, k);
  float* last_state = states.get() + (tokens - 1) * hidden;
  for (std::int64_t c = 0; c < hidden; ++c) last_state[c] = static_cast<float>(c % 7 + 1);
  slot_of_row.get()[rows - 1] = rows - 1;

  last_of(rows, mb::GatherRows<float>{},
          mb::GatherProblem{state_view, row_view, slot_of_row.get(), rows, k, {}, true, true, nullptr});
  const float* last_row = outputs.get() + (rows - 1) * hidden;
  CHECK(std::equal(last_row, last_row + hidden, last_state));

  for (std::int64_t i = 0; i < k; ++i) row_of_slot.get()[rows - k + i] = i == 2 ? rows - 1 : -1;
  last_of(tokens, mb::CombineRows<float>{}, mb::CombineProblem{row_view, state_view, rows_of, {}, {}, true, nullptr});
  CHECK(std::equal(last_row, last_row + hidden, last_state));

  row_of_slot.get()[rows - 1] = rows - 1;
  last_of(rows, mb::DotSlots<float>{},
          mb::DotProblem{state_view, row_view, rows_of, mb::MatrixView<float>(dots.get(), tokens, k), true});
  float want = 0;
  for (std::int64_t c = 0; c < hidden; ++c) want += last_row[c] * last_row[c];
  CHECK(dots.get()[rows - 1] == want);

  std::fill(outputs.get() + (rows - 1) * hidden, outputs.get() + rows * hidden, 0.0f);
  dots.get()[rows - 1] = 0;
  last_of(rows, mb::SpreadTokens<float>{},
          mb::SpreadProblem{state_view,
                            row_view,
                            rows_of,
                            slot_of_row.get(),
                            {},
                            row_view,
                            mb::MatrixView<float>(dots.get(), tokens, k),
                            {},
                            true,
                            true,
                            true,
                            true,
                            nullptr});
  CHECK(std::equal(last_row, last_row + hidden, last_state));
  CHECK(dots.get()[rows - 1] == want);
}

}  // namespace testing
