// Losses that count otherwise than the routing does: what arrives at devices, and a plain top-8 beside a bias (DeepSeek-V3's sequence loss).
#pragma once

#include "../microbenchmark.hpp"

namespace microbenchmark {

inline const bool counted_apart[] = {
    add("softmax_top8_communication", mb::Router{mb::Softmax{}, mb::TopK<8>{}, mb::CommunicationLoss{mb::AuxLoss{}, 8, 4}},
        {256}),
    add("sigmoid_top8_bias_plain",
        mb::Router{mb::Sigmoid{}, mb::TopK<8>{}, mb::Combine{mb::LossFreeBias{}, mb::FromPlainTopK{mb::SequenceLoss{}}}},
        {256})};

}  // namespace microbenchmark
