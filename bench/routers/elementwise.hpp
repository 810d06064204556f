// Elementwise scorings with a bias: DeepSeek-V3's groups, the square root of softplus, and quantile balancing beside the sign's rule.
#pragma once

#include "../microbenchmark.hpp"

namespace microbenchmark {

inline constexpr mb::GroupLimitedTopK<8> eight_groups{.groups = 8, .groups_kept = 4, .scaling_factor = 2.5f};

inline const bool elementwise[] = {
    add("sigmoid_groups_top8_bias", mb::Router{mb::Sigmoid{}, eight_groups, mb::LossFreeBias{}}, {256}),
    add("sqrt_softplus_top8_bias", mb::Router{mb::SqrtSoftplus{}, mb::TopK<8>{}, mb::LossFreeBias{}}, {256}),
    add("sigmoid_top8_bias", mb::Router{mb::Sigmoid{}, mb::TopK<8>{}, mb::LossFreeBias{}}, {256}),
    add("sigmoid_top8_quantile", mb::Router{mb::Sigmoid{}, mb::TopK<8>{}, mb::QuantileBias{}}, {256})};

}  // namespace microbenchmark
