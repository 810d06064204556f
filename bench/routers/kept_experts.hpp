// Tokens that keep fewer than K experts, and losses of their entropy, beside a plain top-8.
#pragma once

#include "../microbenchmark.hpp"

namespace microbenchmark {

inline const bool kept_experts[] = {
    add("softmax_plain_top8", mb::Router{mb::Softmax{}, mb::TopK<8>{.renormalise = false}, mb::AuxLoss{}}, {16, 256}),
    add("softmax_top_p8", mb::Router{mb::Softmax{}, mb::TopP<8>{.p = 0.1f}, mb::AuxLoss{}}, {16, 256}),
    add("softmax_top8_entropy",
        mb::Router{mb::Softmax{}, mb::TopK<8>{.renormalise = false}, mb::Combine{mb::AuxLoss{}, mb::EntropyLoss{}}},
        {16, 256})};

}  // namespace microbenchmark
