// Softmax with a small K: 1 (Switch), 2 (Mixtral), 4.
#pragma once

#include "../microbenchmark.hpp"

namespace microbenchmark {

inline const bool softmax_small_k[] = {
    add("softmax_top1_aux_loss", mb::Router{mb::Softmax{}, mb::TopK<1>{}, mb::AuxLoss{}}, {8}),
    add("softmax_top2_aux_loss", mb::Router{mb::Softmax{}, mb::TopK<2>{}, mb::AuxLoss{}}, {8}),
    add("softmax_top4_aux_loss", mb::Router{mb::Softmax{}, mb::TopK<4>{}, mb::AuxLoss{}}, {64})};

}  // namespace microbenchmark
