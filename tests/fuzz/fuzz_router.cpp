// libFuzzer target: any bits of logits, bias, shape, options, masks, replayed ids. Built with -fsanitize=fuzzer,address,undefined.
// Checks: good calls keep the invariants of CONTRACT.md and one thread gives the bits of two; bad calls throw InvalidArgument and write
// nothing. Any other exception, a sanitizer report or a broken invariant stops it.
#include <moe_balance/moe_balance.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

namespace mb = moe_balance;

void require(bool condition, const char* promise) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", promise);
  std::abort();
}

/// Reads values from the fuzzer's bytes; when they run out, from a generator that all of them have seeded.
class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {
    for (std::size_t i = 0; i < size; ++i) seed_ = (seed_ ^ data[i]) * 0x100000001b3u;
  }

  template <class T>
  T take() {
    T value{};
    if (size_ >= sizeof(T)) {
      std::memcpy(&value, data_, sizeof(T));
      data_ += sizeof(T);
      size_ -= sizeof(T);
    } else {
      seed_ += 0x9e3779b97f4a7c15u;
      std::uint64_t bits = (seed_ ^ (seed_ >> 30)) * 0xbf58476d1ce4e5b9u;
      bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
      bits ^= bits >> 31;
      std::memcpy(&value, &bits, sizeof(T));
    }
    return value;
  }
  /// In [low, high].
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(take<std::uint32_t>() % static_cast<std::uint64_t>(high - low + 1));
  }
  bool flag() { return (take<std::uint8_t>() & 1) != 0; }
  template <class T>
  std::vector<T> many(std::size_t count) {
    std::vector<T> values(count);
    for (T& value : values) value = take<T>();
    return values;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
  std::uint64_t seed_ = 0xcbf29ce484222325u;
};

/// All memory of one call; exactly as large as what the views describe, so that the address sanitizer sees one step too far.
struct Problem {
  std::int64_t tokens = 0;
  std::int64_t experts = 1;
  mb::DataType logits_type = mb::DataType::float32;
  mb::DataType weights_type = mb::DataType::float32;
  std::vector<std::uint8_t> logits, weights, grad_weights, grad_logits;
  std::vector<std::int32_t> ids, replay;
  std::vector<std::uint8_t> active, replay_tokens;
  std::vector<float> bias;
  std::vector<std::int64_t> load, counts, saved, offsets;
  mb::Sequences sequences;
  mb::Status status;
  std::int64_t tokens_on_device = 0;
  bool has_tokens_on_device = false;
  bool accumulate = true;
  float loss = 0;
};

constexpr std::uint8_t poison = 0x5a;

/// Zeros, ones, the largest and the smallest, infinities and NaN of both signs: the ends of a type's range and many ties.
std::uint64_t special_bits(mb::DataType type, Bytes& bytes) {
  constexpr std::uint64_t as_float64[] = {0, 0x3ff0000000000000u, 0x7fefffffffffffffu,
                                          1, 0x7ff0000000000000u, 0x7ff8000000000001u};
  constexpr std::uint64_t as_float32[] = {0, 0x3f800000u, 0x7f7fffffu, 1, 0x7f800000u, 0x7fc00001u};
  constexpr std::uint64_t as_float16[] = {0, 0x3c00u, 0x7bffu, 1, 0x7c00u, 0x7e01u};
  constexpr std::uint64_t as_bfloat16[] = {0, 0x3f80u, 0x7f7fu, 1, 0x7f80u, 0x7fc1u};
  const std::uint64_t* table = type == mb::DataType::float64   ? as_float64
                               : type == mb::DataType::float32 ? as_float32
                               : type == mb::DataType::float16 ? as_float16
                                                               : as_bfloat16;
  const std::uint64_t sign = std::uint64_t{bytes.flag()} << (8 * mb::size_of(type) - 1);
  return table[bytes.between(0, 5)] | sign;
}

/// A share of the logits becomes special values.
void sprinkle(std::vector<std::uint8_t>& elements, mb::DataType type, Bytes& bytes) {
  const std::int64_t one_in = bytes.between(1, 8);
  for (std::size_t at = 0; at < elements.size(); at += mb::size_of(type)) {
    const std::uint64_t bits = special_bits(type, bytes);
    if (bytes.between(1, one_in) == 1) std::memcpy(&elements[at], &bits, mb::size_of(type));
  }
}

Problem problem_from(Bytes& bytes, int k) {
  constexpr mb::DataType types[] = {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16,
                                    mb::DataType::float64};
  Problem problem;
  problem.tokens = bytes.between(0, 6);
  problem.experts = bytes.between(0, 15) == 0 ? bytes.between(1, 2048) : bytes.between(1, 70);
  problem.logits_type = types[bytes.between(0, 3)];
  problem.weights_type =
      bytes.flag() && problem.logits_type != mb::DataType::float64 ? mb::DataType::float32 : problem.logits_type;
  const auto tokens = static_cast<std::size_t>(problem.tokens);
  const auto experts = static_cast<std::size_t>(problem.experts);
  const auto slots = tokens * static_cast<std::size_t>(k);
  problem.has_tokens_on_device = bytes.flag();
  problem.tokens_on_device = bytes.between(0, 8);
  problem.accumulate = bytes.flag();
  if (bytes.flag()) problem.active = bytes.many<std::uint8_t>(tokens);
  if (bytes.flag()) problem.replay_tokens = bytes.many<std::uint8_t>(tokens);
  problem.replay = bytes.many<std::int32_t>(slots);
  for (std::int32_t& id : problem.replay) id = bytes.flag() ? id : id % static_cast<std::int32_t>(experts);
  problem.bias = bytes.many<float>(experts);
  for (float& bias : problem.bias) bias = std::isfinite(bias) ? bias : 0.0f;
  problem.sequences.count = bytes.between(1, 4);
  problem.sequences.layout = mb::Sequences::Layout::offsets;
  problem.offsets.assign(static_cast<std::size_t>(problem.sequences.count) + 1, 0);
  for (std::size_t s = 1; s < problem.offsets.size(); ++s)
    problem.offsets[s] = bytes.between(problem.offsets[s - 1], problem.tokens);
  problem.offsets.back() = problem.tokens;
  problem.load.assign(experts, 3);
  problem.counts.assign(experts, -7);
  problem.ids.assign(slots, -99);
  problem.weights.assign(slots * mb::size_of(problem.weights_type), poison);
  problem.grad_weights.assign(problem.weights.size(), 0x35);  // a small positive number in every type
  problem.grad_logits.assign(tokens * experts * mb::size_of(problem.weights_type), poison);
  problem.logits = bytes.many<std::uint8_t>(tokens * experts * mb::size_of(problem.logits_type));
  if (bytes.flag()) sprinkle(problem.logits, problem.logits_type, bytes);
  return problem;
}

mb::ForwardArgs forward_args(Problem& problem, int k, bool replays) {
  mb::ForwardArgs args;
  args.logits = {problem.logits.data(), problem.logits_type, problem.tokens, problem.experts, problem.experts};
  args.experts = {problem.ids.data(), problem.tokens, k};
  args.weights = {problem.weights.data(), problem.weights_type, problem.tokens, k, k};
  args.counts = problem.counts.data();
  args.bias = {problem.bias.data(), static_cast<int>(problem.experts)};
  args.load = {problem.load.data(), static_cast<int>(problem.experts)};
  args.saved = {problem.saved.data(), problem.saved.size() * sizeof(std::int64_t)};
  args.active = problem.active.empty() ? nullptr : problem.active.data();
  args.sequences = problem.sequences;
  args.sequences.offsets = problem.offsets.data();
  if (replays) {
    args.replay.experts = {problem.replay.data(), problem.tokens, k};
    args.replay.tokens = problem.replay_tokens.empty() ? nullptr : problem.replay_tokens.data();
  }
  args.status = &problem.status;
  args.tokens_on_device = problem.has_tokens_on_device ? &problem.tokens_on_device : nullptr;
  args.accumulate = problem.accumulate;
  return args;
}

mb::BackwardArgs backward_args(Problem& problem, int k) {
  const mb::ForwardArgs forward = forward_args(problem, k, false);
  mb::BackwardArgs args;
  args.logits = forward.logits;
  args.experts = forward.experts;
  args.grad_weights = {problem.grad_weights.data(), problem.weights_type, problem.tokens, k, k};
  args.grad_logits = {problem.grad_logits.data(), problem.weights_type, problem.tokens, problem.experts, problem.experts};
  args.saved = forward.saved;
  args.active = forward.active;
  args.sequences = forward.sequences;
  args.tokens_on_device = forward.tokens_on_device;
  return args;
}

/// The bits of infinity: all ones in the exponent.
std::uint64_t infinity_bits(mb::DataType type) {
  return type == mb::DataType::float64   ? 0x7ff0000000000000u
         : type == mb::DataType::float32 ? 0x7f800000u
         : type == mb::DataType::float16 ? 0x7c00u
                                         : 0x7f80u;
}

/// The largest magnitude bits among the elements: below infinity's all are finite, above there is a NaN.
std::uint64_t largest_magnitude(const std::vector<std::uint8_t>& bytes, mb::DataType type) {
  const std::size_t size = mb::size_of(type);
  const std::uint64_t sign = std::uint64_t{1} << (8 * size - 1);
  std::uint64_t largest = 0;
  for (std::size_t at = 0; at < bytes.size(); at += size) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &bytes[at], size);
    largest = std::max(largest, bits & ~sign);
  }
  return largest;
}
bool all_finite(const std::vector<std::uint8_t>& bytes, mb::DataType type) {
  return largest_magnitude(bytes, type) < infinity_bits(type);
}
bool no_nan(const std::vector<std::uint8_t>& bytes, mb::DataType type) {
  return largest_magnitude(bytes, type) <= infinity_bits(type);
}

void check_outputs(const Problem& problem, int k, bool ids_may_be_empty) {
  std::vector<std::int64_t> histogram(static_cast<std::size_t>(problem.experts), 0);
  for (std::int64_t t = 0; t < problem.tokens; ++t) {
    const bool active = (problem.active.empty() || problem.active[static_cast<std::size_t>(t)] != 0) &&
                        (!problem.has_tokens_on_device || t < problem.tokens_on_device);
    const bool replayed =
        ids_may_be_empty && (problem.replay_tokens.empty() || problem.replay_tokens[static_cast<std::size_t>(t)] != 0);
    const std::size_t first = static_cast<std::size_t>(t * k);
    for (std::size_t i = first; i < first + static_cast<std::size_t>(k); ++i) {
      const std::int32_t id = problem.ids[i];
      require(id >= -1 && id < problem.experts, "ids lie in [-1, E)");
      require(active || id == -1, "an inactive token has ids -1");
      require(!active || replayed || id >= 0, "an active token has K ids");
      if (id < 0) continue;
      ++histogram[static_cast<std::size_t>(id)];
      for (std::size_t j = first; j < i && !replayed; ++j) require(problem.ids[j] != id, "ids are distinct");
    }
  }
  require(problem.counts == histogram, "counts are the histogram of the ids");
  for (std::size_t e = 0; e < histogram.size(); ++e) {
    require(problem.load[e] == 3 + (problem.accumulate ? histogram[e] : 0), "load grows by the counts when told to");
  }
  require(all_finite(problem.weights, problem.weights_type), "weights are finite");
  require(!std::isnan(problem.loss), "the loss is not NaN");
  require(no_nan(problem.grad_logits, problem.weights_type), "no gradient is NaN");
}

bool same_outputs(const Problem& a, const Problem& b) {
  return a.ids == b.ids && a.weights == b.weights && a.counts == b.counts && a.load == b.load && a.saved == b.saved &&
         a.grad_logits == b.grad_logits && a.bias == b.bias && a.offsets == b.offsets &&
         a.status.non_finite_tokens == b.status.non_finite_tokens && a.status.invalid_experts == b.status.invalid_experts &&
         std::memcmp(&a.loss, &b.loss, sizeof a.loss) == 0;
}

/// Forward, loss, backward; false when refused.
template <class Router>
bool run(const Router& router, Problem& problem, const mb::Host& place) {
  constexpr int k = Router::k;
  try {
    router.forward(forward_args(problem, k, mb::is_replaying<decltype(router.top_k)>), {}, place);
  } catch (const mb::InvalidArgument&) {
    return false;
  }
  if constexpr (Router::loss_count > 0) {
    mb::LossArgs loss;
    loss.saved = {problem.saved.data(), problem.saved.size() * sizeof(std::int64_t)};
    loss.experts = static_cast<int>(problem.experts);
    loss.sequences = problem.sequences;
    loss.value = &problem.loss;
    router.loss(loss, {}, place);
  }
  router.backward(backward_args(problem, k), {}, place);
  return true;
}

/// Spoils one argument; the call must throw and write nothing.
template <class Router>
void check_refusal(const Router& router, Problem problem, Bytes& bytes) {
  mb::ForwardArgs args = forward_args(problem, Router::k, mb::is_replaying<decltype(router.top_k)>);
  switch (bytes.between(0, 10)) {
    case 0:
      args.logits.columns = bytes.flag() ? 0 : 2049;
      break;
    case 1:
      args.logits.rows = -1 - bytes.between(0, 1000);
      break;
    case 2:
      args.logits.stride = args.logits.columns - 1 - bytes.between(0, 1000);
      break;
    case 3:
      args.experts.rows += 1 + bytes.between(0, 1000);
      break;
    case 4:
      args.experts.columns = Router::k + 1;
      break;
    case 5:
      args.weights.stride = Router::k - 1 - bytes.between(0, 100);
      break;
    case 6:
      args.weights.type = args.logits.type == mb::DataType::float16 ? mb::DataType::bfloat16 : mb::DataType::float64;
      if (args.logits.type == mb::DataType::float64) args.weights.type = mb::DataType::float32;
      break;
    case 7:
      args.logits.rows = args.experts.rows = args.weights.rows = std::int64_t{1} << 62;
      break;
    case 8:
      args.bias.experts += 1;
      break;
    case 9:
      args.kept_counts = args.counts;
      break;
    default:
      args.counts = reinterpret_cast<std::int64_t*>(reinterpret_cast<std::uintptr_t>(args.counts) + 4);
      break;
  }
  const Problem before = problem;
  bool refused = false;
  try {
    router.forward(args, {}, mb::Host{.threads = 1});
  } catch (const mb::InvalidArgument&) {
    refused = true;
  }
  require(refused, "bad input is refused");
  require(same_outputs(before, problem), "a refused call writes nothing");
}

template <class Router>
void check(const Router& router, Bytes& bytes, bool ids_may_be_empty = false) {
  Problem problem = problem_from(bytes, Router::k);
  problem.saved.assign(router.saved_bytes({problem.tokens, static_cast<int>(problem.experts), problem.sequences.count}) /
                           sizeof(std::int64_t),
                       0x7b);
  check_refusal(router, problem, bytes);
  const Problem untouched = problem;
  Problem in_two = problem;
  if (!run(router, problem, mb::Host{.threads = 1})) {
    require(same_outputs(untouched, problem), "a refused call writes nothing");
    return;
  }
  require(untouched.logits == problem.logits && untouched.bias == problem.bias, "inputs are read only");
  check_outputs(problem, Router::k, ids_may_be_empty);
  run(router, in_two, mb::Host{.threads = 2, .instructions = mb::InstructionSet::baseline});
  require(same_outputs(problem, in_two), "any thread count and instruction set gives the same bits");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  const mb::Combine balancer{mb::AuxLoss{}, mb::SequenceLoss{}, mb::GlobalBatchLoss{}, mb::ZLoss{}, mb::LossFreeBias{}};
  const auto option = [&] { return static_cast<int>(bytes.between(-1, 9)); };
  switch (bytes.between(0, 4)) {
    case 0:
      check(mb::Router{mb::Softmax{}, mb::TopK<3>{.renormalise = bytes.flag()}, balancer}, bytes);
      break;
    case 1:
      check(mb::Router{mb::Sigmoid{},
                       mb::GroupLimitedTopK<4>{.groups = option(), .groups_kept = option(), .group_score_top = option()},
                       balancer},
            bytes);
      break;
    case 2:
      check(mb::Router{mb::SqrtSoftplus{}, mb::Replay{mb::TopK<2>{}}, balancer}, bytes, true);
      break;
    case 3:
      check(mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<8>{.scaling_factor = 2.5f}}, bytes);
      break;
    default:
      check(mb::Router{mb::Identity{}, mb::TopK<1>{}}, bytes);
      break;
  }
  return 0;
}
