// Softmax, top-8: Qwen3, OLMoE and most that train with an auxiliary loss.
#pragma once

#include "../microbenchmark.hpp"

namespace microbenchmark {

inline const bool softmax_top8[] = {
    add("softmax_top8_aux_loss", mb::Router{mb::Softmax{}, mb::TopK<8>{}, mb::AuxLoss{}}, {64, 128, 256, 384, 512}),
    add_route("softmax_top8", mb::Router{mb::Softmax{}, mb::TopK<8>{}, mb::AuxLoss{}}, {256})};

}  // namespace microbenchmark
