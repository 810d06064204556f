// The pass that counts margins: its kernel's body on fibers, for every tier; and broken on purpose.
#include "engine_fibers.hpp"

#include "bodies/errors.hpp"
#include "bodies/margins.hpp"

#include <set>

namespace testing {

/// For whole calls of few experts.
struct FibersOfFewExperts : FiberEngine {
  [[nodiscard]] FibersOfTiers<0> place() const { return {.seed = 1, .multiprocessors = 2}; }
};
TEST_CASE_TEMPLATE_INVOKE(margins_softmax, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_over_selected, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_sigmoid, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_scores, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_of_many, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_nan, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_user, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_of_many_tokens, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_margins, FibersOfFewExperts);

namespace {

/// Fibers on a device of another size, or with faults.
struct OtherFibers : FiberEngine {
  std::size_t shared_bytes;
  Faults faults{};
  explicit OtherFibers(std::size_t bytes = Fibers{}.shared_bytes) : shared_bytes(bytes) {}
  [[nodiscard]] Fibers place() const {
    Fibers result = FiberEngine::place();
    result.shared_bytes = shared_bytes;
    result.faults = faults;
    return result;
  }
};
const OtherFibers one_kernel(0);

/// How many kernels have counted, and whether what they counted is what the CPU counts.
struct Counting {
  int kernels;
  bool is_right;
};
template <class Scoring, class Balancer, int K>
Counting count_on(const OtherFibers& engine, const Scoring& scoring, const mb::TopK<K>& top_k, const Balancer& rule,
                  const Inputs& inputs) {
  const std::vector<std::int32_t> ids = ids_of(scoring, top_k, inputs);
  const int before = kernels_launched;
  const std::vector<std::int64_t> counted = histogram_of<float>(engine, scoring, top_k, rule, inputs, ids);
  const int kernels = kernels_launched - before;
  return {kernels, counted == histogram_of<float>(HostEngine{}, scoring, top_k, rule, inputs, ids)};
}

/// Whether kernels give other margins than the CPU, or are stopped, in some order of their lanes.
bool is_caught(const OtherFibers& engine, int experts) {
  Inputs inputs = normal_inputs(11, 90, experts, 1, 0.5);
  inputs.bias = normal_bias(12, experts, 0.5);
  const mb::Sigmoid scoring;
  const mb::TopK<4> top_k;
  const mb::QuantileBias rule{.bins = 50};
  const std::vector<std::int32_t> ids = ids_of(scoring, top_k, inputs);
  const std::vector<std::int64_t> want = histogram_of<float>(HostEngine{}, scoring, top_k, rule, inputs, ids);
  for (int order = 0; order < 4; ++order) {
    try {
      if (histogram_of<float>(engine, scoring, top_k, rule, inputs, ids) != want) return true;
    } catch (const FiberError&) {
      return true;
    }
  }
  return false;
}

}  // namespace

TEST_CASE("a barrier left out, and loops that start or step one too far are caught") {
  for (const OtherFibers& sound : {OtherFibers{}, one_kernel}) {
    const std::size_t barriers = sound.shared_bytes == 0 ? 1 : 3;
    const auto with = [&](const Faults& faults) {
      OtherFibers result = sound;
      result.faults = faults;
      return result;
    };
    for (const int experts : {64, 520}) {
      CAPTURE(barriers);
      CAPTURE(experts);
      std::set<std::uint_least32_t> lines;
      Faults seen;
      seen.block_barriers.seen = &lines;
      CHECK(!is_caught(with(seen), experts));
      CHECK(lines.size() == barriers);
      for (const std::uint_least32_t line : lines) {
        CHECK(is_caught(with(Faults{.block_barriers = {.skipped = line}}), experts));
      }
      CHECK(is_caught(with(Faults{.more_blocks = 1}), experts));
      CHECK(is_caught(with(Faults{.later_block = 1}), experts));
      CHECK(is_caught(with(Faults{.more_threads = 32}), experts));
      if (barriers == 3) CHECK(is_caught(with(Faults{.later_row = 1}), experts));
    }
  }
}

TEST_CASE("margins are counted by two kernels or by one, whatever a block has room for, with the same result") {
  const auto check = [](const auto& scoring, const auto& rule) {
    for (const int experts : {3, 61, 257, 2048}) {
      for (const int tokens : {0, 1, 70}) {
        CAPTURE(experts);
        CAPTURE(tokens);
        const auto seed = static_cast<std::uint64_t>(experts + tokens);
        Inputs inputs = awkward_inputs(seed, tokens, experts);
        inputs.bias = normal_bias(seed + 1, experts);
        inputs.active = Random(seed + 2).flags(static_cast<std::size_t>(tokens), 0.2);
        inputs.row_padding = tokens % 4;
        inputs.tokens_on_device = tokens - tokens / 8;
        inputs.logits_type = experts == 61    ? mb::DataType::bfloat16
                             : experts == 257 ? mb::DataType::float16
                                              : mb::DataType::float32;
        const mb::TopK<2> top_k;
        CHECK(count_on(one_kernel, scoring, top_k, rule, inputs).kernels == 1);
        CHECK(count_on(one_kernel, scoring, top_k, rule, inputs).is_right);
        const std::size_t expert_bytes = static_cast<std::size_t>(mb::bins_of(rule)) * 4;
        for (const std::size_t shared_bytes : {16 * expert_bytes, 5 * expert_bytes, expert_bytes}) {  // 4, and a single one
          CAPTURE(shared_bytes / expert_bytes);
          const Counting counting = count_on(OtherFibers(shared_bytes), scoring, top_k, rule, inputs);
          CHECK(counting.kernels == (tokens == 0 ? 1 : 2));
          CHECK(counting.is_right);
        }
      }
    }
  };
  check(mb::Softmax{}, mb::QuantileBias{.spacing = mb::MarginBins::even, .bins = 1});
  check(mb::SqrtSoftplus{}, mb::QuantileBias{.bins = 3});
  check(mb::SoftmaxOverSelected{}, mb::QuantileBias{.bins = 353});
  check(mb::Softmax{}, mb::Combine{mb::ZLoss{}, mb::ThresholdBias{.bins = 40}});
}

TEST_CASE("margins in the most bins there are: one kernel where no expert of them fits a block, else two") {
  const mb::QuantileBias rule{.bins = mb::max_bins};
  const Inputs inputs = normal_inputs(21, 50, 3, 1, 0.5);
  const Counting usual = count_on(OtherFibers{}, mb::Sigmoid{}, mb::TopK<1>{}, rule, inputs);
  CHECK(usual.kernels == 1);
  CHECK(usual.is_right);
  const Counting large = count_on(OtherFibers(600 * 1024), mb::Sigmoid{}, mb::TopK<1>{}, rule, inputs);
  CHECK(large.kernels == 2);
  CHECK(large.is_right);
}

TEST_CASE("the second kernel's blocks: sectors of rows, what fits, and ranges of tokens that are worth their cells") {
  const auto grid = [](std::int64_t tokens, int experts, int bins, mb::DataType type, int multiprocessors, int kibibytes) {
    const mb::ConstAnyMatrix logits(nullptr, type, tokens, experts, experts);
    return mb::MarginGrid(logits, bins, multiprocessors, static_cast<std::size_t>(kibibytes) * 1024, mb::margin_tuning);
  };
  const auto is = [](const mb::MarginGrid& got, int experts_of_block, std::int64_t expert_ranges,
                     std::int64_t token_ranges) {
    CHECK(got.experts_of_block == experts_of_block);
    CHECK(got.expert_ranges == expert_ranges);
    CHECK(got.token_ranges == token_ranges);
    CHECK(got.shared_bytes % 4 == 0);
  };
  constexpr auto float32 = mb::DataType::float32;
  is(grid(8192, 256, 353, float32, 132, 227), 8, 32, 4);
  is(grid(8192, 256, 353, mb::DataType::bfloat16, 132, 227), 16, 16, 8);
  is(grid(8192, 257, 353, float32, 132, 227), 8, 33, 4);
  is(grid(8192, 256, 353, float32, 1, 227), 8, 32, 1);      // one multiprocessor
  is(grid(8192, 2048, 353, float32, 132, 227), 8, 256, 1);  // more ranges of experts than multiprocessors
  is(grid(32768, 8, 353, float32, 132, 227), 8, 1, 46);     // 706 tokens each, at least
  is(grid(65536, 256, 16384, float32, 132, 227), 2, 128, 1);
  is(grid(65536, 256, 16384, float32, 132, 99), 1, 256, 1);
  is(grid(65536, 256, 16384, float32, 132, 63), 0, 0, 0);  // no room for an expert
  is(grid(705, 256, 353, float32, 132, 227), 0, 0, 0);     // fewer than two tokens a bin
  is(grid(706, 256, 353, float32, 132, 227), 8, 32, 1);
  is(grid(1023, 128, 1, float32, 132, 227), 0, 0, 0);  // not worth a kernel
  is(grid(1024, 128, 1, float32, 132, 227), 8, 16, 8);
  is(grid(std::int64_t{5} << 30, 1, 1, float32, 1, 227), 8, 1, 5);  // counted in 32 bits
}

}  // namespace testing
