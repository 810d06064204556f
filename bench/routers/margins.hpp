// Quantile balancing, whose forward has a second pass, beside the sign's rule.
#pragma once

#include "../microbenchmark.hpp"

namespace microbenchmark {

inline const bool margins[] = {
    add("sigmoid_top8_bias", mb::Router{mb::Sigmoid{}, mb::TopK<8>{}, mb::LossFreeBias{}}, {256}),
    add("sigmoid_top8_quantile", mb::Router{mb::Sigmoid{}, mb::TopK<8>{}, mb::QuantileBias{}}, {256})};

}  // namespace microbenchmark
