// SoftmaxOverSelected: rank by logit + bias, then w_k = softmax over the K chosen logits only.
// Source: gpt-oss; Megatron-Core's default ("post-softmax"). A balancing loss still reads the softmax over all experts.
// With K = 1 every weight is 1 and the router gets no gradient through it: Router::backward refuses that combination.
#pragma once

#include <moe_balance/scoring/softmax.hpp>

MOEB_NAMESPACE_BEGIN

struct SoftmaxOverSelected : Softmax {
  static constexpr bool over_selected = true;
};
static_assert(RowScoring<SoftmaxOverSelected>);
/// \cond
template <>
inline constexpr bool has_softmax_scores<SoftmaxOverSelected> = true;
template <>
inline constexpr bool is_non_negative<SoftmaxOverSelected> = true;
template <>
inline constexpr bool is_finitely_scoring<SoftmaxOverSelected> = true;
/// \endcond

MOEB_NAMESPACE_END
