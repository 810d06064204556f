// A softmax over the chosen logits only, as gpt-oss has it.
#pragma once

#include "../microbenchmark.hpp"

namespace microbenchmark {

inline const bool softmax_over_selected =
    add("softmax_over_selected_top8", mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<8>{}}, {128});

}  // namespace microbenchmark
