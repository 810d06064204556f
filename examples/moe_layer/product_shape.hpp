// What a matrix product needs to know.
#pragma once

#include <cstdint>

namespace moe_layer {

/// c [rows, columns] = a b, inner the dimension that is summed over.
struct ProductShape {
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t inner;
};

}  // namespace moe_layer
