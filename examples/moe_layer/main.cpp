// The layer on the CPU: moe_layer [tokens experts hidden inner]
#include "check.hpp"
#include "eigen_backend.hpp"
#include "options.hpp"

int main(int argc, char** argv) {
  moe_layer::LayerShape shape;
  if (!moe_layer::read_shape(argc, argv, shape)) return 2;
  return moe_layer::check_layer(moe_layer::EigenBackend{}, shape);
}
