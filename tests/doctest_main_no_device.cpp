// doctest's main for what happens without a CUDA device: hides all there are before the first CUDA call.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdlib>

int main(int argc, char** argv) {
  setenv("CUDA_VISIBLE_DEVICES", "", 1);
  return doctest::Context(argc, argv).run();
}
