// The kernels for usual calls (engine/usual_call.hpp), executed on fibers, give the bits of the CPU engine: logits on which their selection, which
// packs keys and slots into words, has to choose between ties or to give up, for every K, and logits in 16 bits.
#include "engine_host.hpp"
#include "tile/fiber_dispatch.hpp"
#include "tile/same_as_host.hpp"

#include "bodies/forward_and_permute.hpp"

#include <limits>
#include <tuple>
#include <utility>
#include <vector>

namespace testing {

namespace {

/// Logits that a selection finds hard.
enum class Rows : std::uint8_t {
  normal,
  levels,      ///< a few values only: many ties
  equal,       ///< one value
  few_finite,  ///< fewer than K are finite: the others are -inf, in every fourth token also NaN and +inf
  tiny         ///< scores of 1, e^-60 and e^-80: all but a few are below 2^-63
};
constexpr Rows every_kind[] = {Rows::normal, Rows::levels, Rows::equal, Rows::few_finite, Rows::tiny};

constexpr float infinite = std::numeric_limits<float>::infinity();

float logit_of(Rows rows, Random& random, float finite_share, bool is_odd_token) {
  switch (rows) {
    case Rows::levels:
      return 0.5f * static_cast<float>(random.integer(-2, 2));
    case Rows::equal:
      return 0.25f;
    case Rows::few_finite: {
      const float others[] = {-infinite, -infinite, -infinite, std::nanf(""), infinite};
      if (random.chance(static_cast<double>(finite_share))) return static_cast<float>(random.normal());
      return others[random.integer(0, is_odd_token ? 4 : 2)];
    }
    case Rows::tiny:
      return random.chance(static_cast<double>(finite_share)) ? 0.0f : random.chance(0.5) ? -60.0f : -80.0f;
    default:
      return static_cast<float>(random.normal());
  }
}

/// A usual call's inputs: three tokens for each of the tiles that run at a time on one multiprocessor, and one more.
StepInputs usual_inputs(Rows rows, int experts, int k) {
  const std::int64_t tiles = 4 * (experts < 128 ? 4 : experts < 256 ? 2 : 1);
  Random random(static_cast<std::uint64_t>(experts * 100 + k));
  StepInputs inputs(1, tiles * 3 + 1, experts, k, false);
  const float finite_share = static_cast<float>(k) / static_cast<float>(2 * experts);
  for (std::size_t i = 0; i < inputs.logits.size(); ++i) {
    const bool is_odd_token = i / static_cast<std::size_t>(experts) % 4 == 3;
    inputs.logits[i] = logit_of(rows, random, finite_share, is_odd_token);
  }
  inputs.usual = true;
  return inputs;
}

template <class Router>
void check_usual(const Router& router) {
  for (const int experts : {4, 20, 32, 36, 60, 64, 72, 128, 160, 256, 260, 512}) {
    if (experts < Router::k) continue;
    for (const Rows rows : every_kind) {
      CAPTURE(Router::k);
      CAPTURE(static_cast<int>(rows));
      StepInputs inputs = usual_inputs(rows, experts, Router::k);
      check_step(router, inputs, 1);
      inputs.masked = true;
      if (rows == Rows::normal || rows == Rows::few_finite) check_step(router, inputs, 1);
      inputs.masked = false;
      if (rows == Rows::levels || rows == Rows::equal || rows == Rows::tiny) continue;  // values that 16 bits hold
      inputs.type = mb::DataType::bfloat16;
      check_step(router, inputs, 1);
    }
  }
}

/// Scores that are probabilities, which rank by their own bits.
template <int K>
void check_softmax() {
  check_usual(mb::Router{mb::Softmax{}, mb::TopK<K>{}, mb::AuxLoss{.coefficient = 0.3f}});
}

/// Sums of score and bias, which rank by distance from the largest.
template <int K>
void check_biased() {
  check_usual(mb::Router{mb::Sigmoid{}, mb::TopK<K>{}, mb::LossFreeBias{}});
}

}  // namespace

TEST_CASE("usual calls: fibers = CPU, Softmax, K = 1, 2, 4") {
  check_softmax<1>();
  check_softmax<2>();
  check_softmax<4>();
}
TEST_CASE("usual calls: fibers = CPU, Softmax, K = 8, 10, 16") {
  check_softmax<8>();
  check_softmax<10>();
  check_softmax<16>();
}
TEST_CASE("usual calls: fibers = CPU, Sigmoid with a bias, K = 1, 8, 16") {
  check_biased<1>();
  check_biased<8>();
  check_biased<16>();
}
TEST_CASE("usual calls: fibers = CPU, SoftmaxOverSelected, whose keys are logits") {
  check_usual(mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<8>{}});
}
TEST_CASE("usual calls: fibers = CPU, where lanes have no registers to read the next row ahead") {
  using WithAux = mb::ForwardProblem<mb::SoftmaxOverSelected, mb::TopK<8>, mb::AuxLoss>;
  static_assert(!mb::usual_kernel_reads_ahead<mb::tier_of(512), WithAux>);
  check_usual(mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<8>{}, mb::AuxLoss{.coefficient = 0.3f}});
  using WithSequences = mb::ForwardProblem<mb::SqrtSoftplus, mb::TopK<8>, mb::SequenceLoss>;
  static_assert(!mb::usual_kernel_reads_ahead<mb::tier_of(128), WithSequences>);
  check_usual(mb::Router{mb::SqrtSoftplus{}, mb::TopK<8>{}, mb::SequenceLoss{.coefficient = 0.3f}});
}

namespace {

/// A user's softmax, which promises nothing about finite scores though its row says that all logits are finite.
struct PlainSoftmax {
  static constexpr bool normalised = true;
  static constexpr bool non_negative = true;
  template <class Real>
  using Row = mb::SoftmaxRow<Real>;

  template <class TileT, class LayoutT, class Real>
  MOEB_INLINE Row<Real> prepare(const TileT& tile, const LayoutT& layout, const mb::Slots<Real, LayoutT>& logits,
                                mb::Slots<Real, LayoutT>& scores) const {
    return mb::Softmax{}.prepare(tile, layout, logits, scores);
  }
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real score(Real logit, const Row<Real>& row) const {
    return row.probability(logit);
  }
  template <class TileT, class LayoutT, class Real>
  MOEB_INLINE void backward(const TileT& tile, const LayoutT& layout, const mb::Slots<Real, LayoutT>& logits,
                            const mb::Slots<Real, LayoutT>& scores, mb::Slots<Real, LayoutT>& grad,
                            const Row<Real>& row) const {
    mb::Softmax{}.backward(tile, layout, logits, scores, grad, row);
  }
};

}  // namespace

TEST_CASE("usual calls: a scoring of the user's that makes no promise has the CPU's gradients") {
  check_usual(mb::Router{PlainSoftmax{}, mb::TopK<4>{}, mb::AuxLoss{.coefficient = 0.3f}});
}

namespace {

/// A user's scoring that gives -inf, which padding is, a score like any other's.
struct RaisedSoftmax {
  static constexpr bool normalised = false;
  static constexpr bool finite_scores = true;
  template <class Real>
  using Row = mb::SoftmaxRow<Real>;

  template <class TileT, class LayoutT, class Real>
  MOEB_INLINE Row<Real> prepare(const TileT& tile, const LayoutT& layout, const mb::Slots<Real, LayoutT>& logits,
                                mb::Slots<Real, LayoutT>& scores) const {
    const Row<Real> row = mb::Softmax{}.prepare(tile, layout, logits, scores);
    mb::for_each_slot(layout, [&](int slot) { scores[slot] = mb::add(scores[slot], Real(0.5)); });
    return row;
  }
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real score(Real logit, const Row<Real>& row) const {
    return mb::add(row.probability(logit), Real(0.5));
  }
  template <class TileT, class LayoutT, class Real>
  MOEB_INLINE void backward(const TileT& tile, const LayoutT& layout, const mb::Slots<Real, LayoutT>& logits,
                            const mb::Slots<Real, LayoutT>& /*scores*/, mb::Slots<Real, LayoutT>& grad,
                            const Row<Real>& row) const {
    mb::Slots<Real, LayoutT> probabilities;
    mb::for_each_slot(layout, [&](int slot) {
      const Real probability = row.probability(logits[slot]);
      probabilities[slot] = probability < mb::infinity<Real> ? probability : Real(0);
    });
    mb::Softmax{}.backward(tile, layout, logits, probabilities, grad, row);
  }
};

/// Groups of quads on neighbouring lanes, of quads that lie anywhere, and of parts of quads.
template <int K>
void check_groups(const std::vector<std::pair<int, int>>& experts_and_groups) {
  for (const auto& [experts, groups] : experts_and_groups) {
    CAPTURE(groups);
    for (const Rows rows : every_kind) {
      CAPTURE(static_cast<int>(rows));
      const mb::GroupLimitedTopK<K> selection{.groups = groups, .groups_kept = (groups + 1) / 2};
      check_step(mb::Router{mb::Sigmoid{}, selection, mb::LossFreeBias{}}, usual_inputs(rows, experts, K), 1);
      check_step(mb::Router{mb::Softmax{}, selection, mb::AuxLoss{.coefficient = 0.3f}}, usual_inputs(rows, experts, K), 1);
    }
  }
}

}  // namespace

TEST_CASE("usual calls: padding takes no part, whatever a scoring of the user's makes of it") {
  check_usual(mb::Router{RaisedSoftmax{}, mb::TopK<4>{}, mb::AuxLoss{.coefficient = 0.3f}});
}

namespace {

/// A user's selection that counts what it may choose from: with padding among it, it would lose expert 0.
struct Counting {
  static constexpr int k = 4;
  [[nodiscard]] constexpr mb::Weighting weighting() const { return {}; }
  void check(const char* /*call*/, int /*experts*/) const {}
  template <class Real, class TileT, class LayoutT, class Keys>
  MOEB_INLINE void narrow(const TileT& tile, const LayoutT& layout, Keys& keys) const {
    std::int32_t candidates = 0;
    mb::for_each_slot(layout, [&](int slot) { candidates += keys[slot] != mb::excluded_key<mb::Key<Real>> ? 1 : 0; });
    for (int distance = TileT::width / 2; distance >= 1; distance /= 2) candidates += tile.shuffle_xor(candidates, distance);
    if (candidates == layout.experts) return;
    mb::for_each_slot(layout, [&](int slot) {
      if (layout.is_expert(slot, 0)) keys[slot] = mb::excluded_key<mb::Key<Real>>;
    });
  }
};

}  // namespace

TEST_CASE("usual calls: a selection of the user's sees no padding among what it may choose") {
  check_usual(mb::Router{mb::Softmax{}, Counting{}, mb::AuxLoss{.coefficient = 0.3f}});
}

TEST_CASE("usual calls: groups of experts, whether they fill a tier or not") {
  check_groups<6>({{16, 2}, {24, 4}, {32, 4}, {96, 3}, {160, 8}, {192, 6}, {256, 8}, {288, 9}, {384, 8}, {512, 8}});
}

namespace {

/// How a call says which tokens are active.
enum class Masks : std::uint8_t { none, bytes, count, both };

/// A usual call's, and what else its bodies ask for.
Inputs usual_inputs(mb::DataType type, int experts, Masks masks) {
  Inputs inputs = full_inputs(static_cast<std::uint64_t>(experts), 100, experts, 8);
  inputs.loss_parts = 1;
  inputs.logits_type = inputs.grad_type = type;
  inputs.bias.clear();
  if (masks == Masks::none || masks == Masks::count) inputs.active.clear();
  if (masks == Masks::count || masks == Masks::both) inputs.tokens_on_device = 57;
  return inputs;
}

const mb::Router fused_router{mb::Softmax{}, mb::TopK<8>{}, mb::AuxLoss{.coefficient = 0.3f}};

/// Checks f(inputs) in every tier that has kernels for usual calls, full or not, and that it ran so many of them.
template <class Function>
void check_in_tiers(int kernels, const Function& f) {
  for (int i = 0; i < mb::usual_tier_count; ++i) {
    const mb::CudaTier& tier = mb::cuda_tiers[i];
    for (const mb::DataType type : {mb::DataType::float32, mb::DataType::bfloat16}) {
      for (const int experts : {tier.max_experts, tier.max_experts / 4 * 3}) {
        CAPTURE(experts);
        CAPTURE(static_cast<int>(type));
        const int usual_before = usual_kernels;
        f(usual_inputs(type, experts, Masks::none));
        f(usual_inputs(type, experts, type == mb::DataType::float32 ? Masks::bytes : Masks::count));
        f(usual_inputs(type, experts, Masks::both));
        CHECK(usual_kernels - usual_before == 3 * kernels);
      }
    }
  }
}

/// What routing and a permutation wrote.
template <class Engine>
std::tuple<std::vector<std::int32_t>, Bytes, std::vector<std::int64_t>, std::vector<std::int64_t>> routed(
    const Engine& engine, const Inputs& inputs, bool fused) {
  const auto size = static_cast<std::size_t>(inputs.tokens * 8);
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(inputs.experts + 1), 77), row_of_slot(size, 77),
      slot_of_row(size, 77);
  const std::size_t bytes = mb::route_and_permute_workspace_bytes(fused_router, {inputs.tokens, inputs.experts});
  Memory<Engine> memory(engine, inputs, 8, bytes, 0);
  mb::RouteArgs args = memory.route_args();
  std::vector<std::int64_t> counts(static_cast<std::size_t>(inputs.experts), 77);
  args.counts = nullptr;
  const mb::PermutationArgs order{.experts = args.experts,
                                  .offsets = {offsets.data(), inputs.experts + 1},
                                  .row_of_slot = {row_of_slot.data(), inputs.tokens, 8},
                                  .slot_of_row = {slot_of_row.data(), inputs.tokens * 8},
                                  .counts = counts.data()};
  if (fused) {
    mb::route_and_permute(fused_router, args, order, memory.workspace(), engine.place());
  } else {
    fused_router.route(args, {}, engine.place());
    mb::permutation(order, memory.workspace(), engine.place());
  }
  const Outcome outcome = memory.outcome();
  return {outcome.experts, outcome.weights_bytes, counts, slot_of_row};
}

}  // namespace

TEST_CASE("usual calls: forward_and_permute on fibers = forward and permutation on the CPU") {
  check_in_tiers(2, [](const Inputs& inputs) { check_fused<FiberEngine>(fused_router, inputs); });
}

TEST_CASE("usual calls: route_and_permute on fibers = route and permutation on the CPU") {
  check_in_tiers(
      1, [](const Inputs& inputs) { CHECK((routed(FiberEngine{}, inputs, true) == routed(HostEngine{}, inputs, false))); });
}

TEST_CASE(
    "usual calls: route with the bias that the balancer has is one; without it, it is not, with the same bits as on the "
    "CPU") {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<8>{}, mb::Combine{mb::LossFreeBias{}, mb::SequenceLoss{}}};
  for (const int experts : {32, 64, 128, 256}) {
    for (const bool has_bias : {true, false}) {
      CAPTURE(experts);
      CAPTURE(has_bias);
      Inputs inputs = usual_inputs(mb::DataType::float32, experts, Masks::none);
      if (has_bias) inputs.bias = normal_bias(55, experts);
      const int usual_before = usual_kernels;
      const Outcome fibers = route(FiberEngine{}, router, inputs);
      CHECK(usual_kernels - usual_before == (has_bias ? 1 : 0));
      const Outcome host = route(HostEngine{}, router, inputs);
      CHECK(fibers.experts == host.experts);
      CHECK(fibers.weights_bytes == host.weights_bytes);
      CHECK(fibers.counts == host.counts);
    }
  }
}

TEST_CASE("clearing ahead of a forward pass sets all sums to 0, and nothing behind them") {
  for (const std::int64_t words : {0, 1, 63, 1000}) {
    for (const int counts : {0, 1, 64, 300}) {
      CAPTURE(words);
      CAPTURE(counts);
      std::vector<std::int64_t> saved(static_cast<std::size_t>(words + 2), 77),
          sums(static_cast<std::size_t>(counts + 2), 77);
      std::vector<std::int64_t> cleared_saved(saved.size(), 0), cleared_sums(sums.size(), 0);
      for (auto* behind : {&cleared_saved, &cleared_sums}) behind->back() = *(behind->end() - 2) = 77;
      launch_fibers(Fibers{}, 3, 1, 64, 0,
                    [&](const FiberBlock& block) { mb::clear_kernel(block, saved.data(), words, sums.data(), counts); });
      CHECK(saved == cleared_saved);
      CHECK(sums == cleared_sums);
    }
  }
}

}  // namespace testing
