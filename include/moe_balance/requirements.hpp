// What a policy lacks, said in the first line of the compiler's error. The concepts say whether a policy will do; these functions assert their
// parts one by one, each with a message that names the member, before the concept as a whole is asserted.
#pragma once

#include <moe_balance/concepts.hpp>

#include <concepts>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

namespace requirements {

template <class S>
concept HasScoreOfLogit = requires(const S scoring, float logit) {
  { scoring(logit) } -> std::convertible_to<float>;
};
template <class S>
concept HasDerivative = requires(const S scoring, float logit, float score) {
  { scoring.derivative(logit, score) } -> std::convertible_to<float>;
};
template <class S>
concept HasRow = requires {
  typename S::template Row<float>;
};
template <class S>
concept HasNormalised = requires {
  { S::normalised } -> std::convertible_to<bool>;
};
template <class S>
concept HasPrepare = requires(const S scoring, const SerialTile tile, const Layout<SerialTile, 64> layout,
                              const Slots<float, Layout<SerialTile, 64>> in, Slots<float, Layout<SerialTile, 64>> out) {
  { scoring.prepare(tile, layout, in, out) } -> std::same_as<typename S::template Row<float>>;
};
template <class S>
concept HasScoreOfRow = requires(const S scoring, const typename S::template Row<float> row) {
  { scoring.score(1.0f, row) } -> std::same_as<float>;
};
template <class S>
concept HasRowBackward = requires(const S scoring, const SerialTile tile, const Layout<SerialTile, 64> layout,
                                  const Slots<float, Layout<SerialTile, 64>> in, Slots<float, Layout<SerialTile, 64>> out,
                                  const typename S::template Row<float> row) {
  {scoring.backward(tile, layout, in, in, out, row)};
};

/// g++ takes a member of every object, where a constant is asked for, for an error by itself.
template <class P>
concept HasKOfObjects = requires {
  requires std::is_member_object_pointer_v<decltype(&P::k)>;
};
template <class P>
concept HasK = requires {
  typename std::integral_constant<int, P::k>;
};
template <class P>
concept HasUsefulK = requires {
  requires P::k >= 1 && P::k <= max_top_k;
};
template <class P>
concept HasNarrow = requires(const P policy, const SerialTile tile, const Layout<SerialTile, 64> layout,
                             Slots<std::int32_t, Layout<SerialTile, 64>> keys) {
  {policy.template narrow<float>(tile, layout, keys)};
};
template <class P>
concept HasCheck = requires(const P policy) {
  {policy.check("", 1)};
};
template <class P>
concept HasWeighting = requires(const P policy) {
  { policy.weighting() } -> std::convertible_to<Weighting>;
};

template <class B>
concept HasDevices = requires(const B balancer) {
  requires std::is_same_v < std::remove_cvref_t<decltype(balancer.devices)>,
  int > ;
};
template <class B>
concept HasEntropyLoss = requires(const B balancer) {
  { balancer.entropy_loss(0.0f) } -> std::convertible_to<float>;
};
template <class B>
concept HasTokenLoss = requires(const B balancer) {
  { balancer.token_loss(0.0f) } -> std::convertible_to<float>;
};

/// A function, of objects or static.
template <class Pointer>
inline constexpr bool is_function_pointer =
    std::is_member_function_pointer_v<Pointer> || std::is_function_v<std::remove_pointer_t<Pointer>>;
/// A selection with a function of this name means to keep fewer experts. A template is seen where it takes a RankedExpert, be that or the policy const or not.
template <class P>
concept NamesKeeps = requires {
  requires is_function_pointer<decltype(&P::keeps)>;
}
|| requires(P policy, RankedExpert<float> expert) {
  policy.keeps(expert);
};
// A balancer that has a function of one of these names means to have that part, whatever its arguments are. Templates and overloads have no
// one address and are not seen.
template <class B>
concept NamesSlope = requires {
  requires is_function_pointer<decltype(&B::slope)>;
};
template <class B>
concept NamesNextBias = requires {
  requires is_function_pointer<decltype(&B::next_bias)>;
};
template <class B>
concept NamesTokenLoss = requires {
  requires is_function_pointer<decltype(&B::token_loss)>;
};
template <class B>
concept NamesTokenSlope = requires {
  requires is_function_pointer<decltype(&B::token_slope)>;
};
template <class B>
concept NamesEntropyLoss = requires {
  requires is_function_pointer<decltype(&B::entropy_loss)>;
};
template <class B>
concept NamesEntropySlope = requires {
  requires is_function_pointer<decltype(&B::entropy_slope)>;
};
template <class B>
concept NamesValue = requires {
  requires is_function_pointer<decltype(&B::value)>;
};

template <class S>
concept HasRanks = requires(const S sync) {
  { sync.ranks() } -> std::convertible_to<int>;
};
template <class S, class Place>
concept HasStart = requires(const S sync, std::int64_t* counts, std::int64_t n, const Place place) {
  {sync.start(counts, n, place)};
};
template <class S, class Place>
concept HasFinish = requires(const S sync, std::int64_t* counts, const Place place) {
  {sync.finish(counts, place)};
};

/// A scoring with a Row, or a `prepare`, means to be row-wise.
template <class S>
[[nodiscard]] constexpr bool of_scoring() {
  static_assert(std::is_trivially_copyable_v<S>,
                "the scoring must satisfy std::is_trivially_copyable: kernels take it by value");
  if constexpr (HasRow<S>) {
    static_assert(HasNormalised<S>, "the row-wise scoring lacks: static constexpr bool normalised");
    static_assert(HasPrepare<S>,
                  "the row-wise scoring lacks: scoring.prepare(tile, layout, logits, scores) const -> Row<Real>");
    static_assert(HasScoreOfRow<S>, "the row-wise scoring lacks: scoring.score(logit, row) const -> Real");
    static_assert(HasRowBackward<S>,
                  "the row-wise scoring lacks: scoring.backward(tile, layout, logits, scores, grad, row) const");
  } else {
    static_assert(HasScoreOfLogit<S>, "the scoring lacks: scoring(logit) const -> float");
    static_assert(HasDerivative<S>, "the scoring lacks: scoring.derivative(logit, score) const -> float");
  }
  return true;
}

template <class P>
[[nodiscard]] constexpr bool of_top_k() {
  static_assert(std::is_trivially_copyable_v<P>,
                "the TopK policy must satisfy std::is_trivially_copyable: kernels take it by value");
  static_assert(!HasKOfObjects<P>, "the TopK policy's k is a member of its objects, and not: static constexpr int k");
  static_assert(HasK<P>, "the TopK policy lacks: static constexpr int k, that is P::k");
  static_assert(HasUsefulK<P>, "the TopK policy's k is not 1 to 32");
  static_assert(HasNarrow<P>, "the TopK policy lacks: policy.template narrow<Real>(tile, layout, keys) const");
  static_assert(HasCheck<P>, "the TopK policy lacks: policy.check(call, experts) const");
  static_assert(HasWeighting<P>, "the TopK policy lacks: policy.weighting() const -> Weighting");
  static_assert(keeps_fewer<P> || !NamesKeeps<P>,
                "the TopK policy's keeps is not: policy.keeps(const RankedExpert<float>&) const -> bool");
  return true;
}

/// A scope of another type than the library reads.
template <class B>
concept HasOtherScope = requires {
  B::scope;
  requires !std::is_same_v<std::remove_cvref_t<decltype(B::scope)>, LossScope>;
};
/// A balancer's `check`, where it is one function.
template <class B>
concept NamesOneCheck = requires {
  &B::check;
};
template <class B>
concept HasCheckOfCall = requires(const B balancer) {
  {balancer.check("")};
};
template <class B>
concept HasCheckOfExperts = requires(const B balancer) {
  {balancer.check("", 1)};
};
template <class B>
concept HasCheckOfExpertsAndK = requires(const B balancer) {
  {balancer.check("", 1, 1)};
};

template <class B>
[[nodiscard]] constexpr bool of_balancer() {
  static_assert(std::is_trivially_copyable_v<B>,
                "the balancer must satisfy std::is_trivially_copyable: kernels take it by value");
  static_assert(
      HasCheckOfCall<B> || HasCheckOfExperts<B> || HasCheckOfExpertsAndK<B> || !NamesOneCheck<B>,
      "the balancer's check is neither: balancer.check(call) const, nor: balancer.check(call, experts) const, nor: "
      "balancer.check(call, experts, k) const");
  static_assert(!HasOtherScope<B>, "the balancer's scope, which the library reads, is not a moe_balance::LossScope");
  // A part with a wrong signature would be left out without a word where the balancer has another.
  static_assert(LossBalancer<B> || !NamesSlope<B>,
                "the balancer's slope is not: balancer.slope(expert, load) const -> float");
  static_assert(
      BiasBalancer<B> || !NamesNextBias<B>,
      "the balancer's next_bias is neither: balancer.next_bias(bias, expert, load) const -> float, nor, with static "
      "constexpr int memory of 1 to 8: balancer.next_bias(bias, expert, load, memory) const -> BiasStep<memory>, nor, "
      "with int bins and bin_of(margin) const -> int: balancer.next_bias(bias, expert, load, margins) const -> float");
  if constexpr (counts_arrivals<B>) {
    static_assert(LossBalancer<B> && HasDevices<B>,
                  "the balancer counts arrivals and lacks: balancer.slope(expert, load), or int devices");
    static_assert(loss_scope<B> != LossScope::global_batch,
                  "the balancer counts arrivals, of which a load says nothing: its scope is a micro-batch or a sequence");
    static_assert(!counts_plain_top_k<B>, "the balancer counts either arrivals or a plain top-k");
  }
  static_assert(!bias_is_factor<B> || BiasBalancer<B>, "the balancer says bias_is_factor and has no next_bias");
  static_assert(ValuedLoss<B> || !NamesValue<B> || !LossBalancer<B>,
                "the balancer's value is not: balancer.value(sum, load) const -> double");
  static_assert(EntropyLossBalancer<B> || !(HasEntropyLoss<B> || NamesEntropyLoss<B> || NamesEntropySlope<B>),
                "the balancer has entropy_loss or entropy_slope and lacks one of: balancer.entropy_loss(entropy) const -> "
                "float, balancer.entropy_slope(entropy) const -> float");
  if constexpr (HasTokenLoss<B>) {
    static_assert(TokenLossBalancer<B>,
                  "the balancer has token_loss and lacks: balancer.token_slope(log_sum_exp) const -> float");
  } else if constexpr (NamesTokenLoss<B> || NamesTokenSlope<B>) {
    static_assert(TokenLossBalancer<B>,
                  "the balancer has token_loss or token_slope and lacks: balancer.token_loss(log_sum_exp) const -> float");
  } else {
    static_assert(
        BalancerPolicy<B>,
        "the balancer lacks one of: balancer.slope(expert, load) const -> float; balancer.next_bias(bias, expert, "
        "load) const -> float (with memory: BiasStep; or from margins); balancer.token_loss(log_sum_exp) and token_slope; "
        "balancer.entropy_loss(entropy) and entropy_slope; using is_idle = void");
  }
  return true;
}

template <class S>
[[nodiscard]] constexpr bool of_sync() {
  static_assert(std::copy_constructible<S>, "the Sync must satisfy std::copy_constructible");
  static_assert(HasRanks<S>, "the Sync lacks: sync.ranks() const -> int");
  return true;
}

template <class S, class Place>
[[nodiscard]] constexpr bool of_sync_on() {
  static_assert(HasStart<S, Place>, "where this call runs the Sync lacks: sync.start(counts, n, place) const");
  static_assert(HasFinish<S, Place>, "where this call runs the Sync lacks: sync.finish(counts, place) const");
  return true;
}

}  // namespace requirements

MOEB_NAMESPACE_END
