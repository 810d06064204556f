// The namespace of kernels names every architecture that nvcc was asked for, and the experts. What nvcc defines is defined here.
#define __CUDA_ARCH_LIST__ 750, 800
#define MOE_BALANCE_CUDA_MAX_EXPERTS 256
#include <moe_balance/engine/arch_namespace.hpp>

#include <doctest/doctest.h>

#include <string>

#define TEXT_OF_(...) #__VA_ARGS__
#define TEXT_OF(...) TEXT_OF_(__VA_ARGS__)

namespace testing {

TEST_CASE("the namespace of kernels has the architectures and the range of experts in its name") {
  CHECK(std::string(TEXT_OF(MOEB_ARCH_NAMESPACE)) == "cuda_750_800_experts_1_256");
#undef __CUDA_ARCH_LIST__
#define __CUDA_ARCH_LIST__ 900
#undef MOE_BALANCE_CUDA_MIN_EXPERTS
#define MOE_BALANCE_CUDA_MIN_EXPERTS 129
  CHECK(std::string(TEXT_OF(MOEB_ARCH_NAMESPACE)) == "cuda_900_experts_129_256");
}

TEST_CASE("none is left out, as many as there are") {
#undef __CUDA_ARCH_LIST__
#define __CUDA_ARCH_LIST__ 750, 800, 860, 870, 880, 890, 900, 1000, 1030, 1100, 1200, 1210
  CHECK(std::string(TEXT_OF(MOEB_ARCH_LIST_NAME)) == "cuda_750_800_860_870_880_890_900_1000_1030_1100_1200_1210");
#undef __CUDA_ARCH_LIST__
#define __CUDA_ARCH_LIST__ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
  CHECK(std::string(TEXT_OF(MOEB_ARCH_LIST_NAME)) == "cuda_1_2_3_4_5_6_7_8_9_10_11_12_13_14_15_16");
}

}  // namespace testing
