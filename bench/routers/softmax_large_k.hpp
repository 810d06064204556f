// Softmax with K = 6 (DeepSeek-V2) and K = 16 of many experts.
#pragma once

#include "../microbenchmark.hpp"

namespace microbenchmark {

inline const bool softmax_large_k[] = {
    add("softmax_top6_aux_loss", mb::Router{mb::Softmax{}, mb::TopK<6>{}, mb::AuxLoss{}}, {64, 160}),
    add("softmax_top16_aux_loss", mb::Router{mb::Softmax{}, mb::TopK<16>{}, mb::AuxLoss{}}, {896})};

}  // namespace microbenchmark
