// Elementwise scorings with a bias: DeepSeek-V3's groups, and the square root of softplus.
#pragma once

#include "../microbenchmark.hpp"

namespace microbenchmark {

inline constexpr mb::GroupLimitedTopK<8> eight_groups{.groups = 8, .groups_kept = 4, .scaling_factor = 2.5f};

inline const bool elementwise[] = {
    add("sigmoid_groups_top8_bias", mb::Router{mb::Sigmoid{}, eight_groups, mb::LossFreeBias{}}, {256}),
    add("sqrt_softplus_top8_bias", mb::Router{mb::SqrtSoftplus{}, mb::TopK<8>{}, mb::LossFreeBias{}}, {256})};

}  // namespace microbenchmark
