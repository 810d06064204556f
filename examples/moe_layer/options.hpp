// The command line: [tokens experts hidden inner].
#pragma once

#include "problem.hpp"

#include <cstdio>
#include <cstdlib>

namespace moe_layer {

/// False, after a message, where the arguments are not four sizes.
inline bool read_shape(int argc, char** argv, LayerShape& shape) {
  if (argc == 1) return true;
  long sizes[4] = {};
  bool good = argc == 5;
  for (int i = 1; good && i < argc; ++i) {
    char* end = nullptr;
    sizes[i - 1] = std::strtol(argv[i], &end, 10);
    good = *end == '\0' && sizes[i - 1] >= 1 && sizes[i - 1] <= 65536;
  }
  good = good && sizes[1] >= K && sizes[1] <= 2048;
  if (!good) {
    std::fprintf(stderr, "usage: %s [tokens experts hidden inner]   (1 to 65536 each, %d to 2048 experts)\n", argv[0], K);
    return false;
  }
  shape = {sizes[0], sizes[1], sizes[2], sizes[3]};
  return true;
}

}  // namespace moe_layer
