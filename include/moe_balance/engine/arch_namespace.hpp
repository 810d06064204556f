// The namespace of kernels and their launchers: it carries the architectures that a file is compiled for, and the numbers of experts.
#pragma once

#include <moe_balance/config.hpp>
#include <moe_balance/cuda_options.hpp>

// cuda_800_900 for 800, 900; of up to sixteen architectures (nvcc 13 knows twelve).
#define MOEB_ARCH_JOIN_(a, b) a##_##b
#define MOEB_ARCH_JOIN(a, b) MOEB_ARCH_JOIN_(a, b)
#define MOEB_ARCH_NAME_1(a) a
#define MOEB_ARCH_NAME_2(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_1(__VA_ARGS__))
#define MOEB_ARCH_NAME_3(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_2(__VA_ARGS__))
#define MOEB_ARCH_NAME_4(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_3(__VA_ARGS__))
#define MOEB_ARCH_NAME_5(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_4(__VA_ARGS__))
#define MOEB_ARCH_NAME_6(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_5(__VA_ARGS__))
#define MOEB_ARCH_NAME_7(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_6(__VA_ARGS__))
#define MOEB_ARCH_NAME_8(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_7(__VA_ARGS__))
#define MOEB_ARCH_NAME_9(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_8(__VA_ARGS__))
#define MOEB_ARCH_NAME_10(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_9(__VA_ARGS__))
#define MOEB_ARCH_NAME_11(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_10(__VA_ARGS__))
#define MOEB_ARCH_NAME_12(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_11(__VA_ARGS__))
#define MOEB_ARCH_NAME_13(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_12(__VA_ARGS__))
#define MOEB_ARCH_NAME_14(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_13(__VA_ARGS__))
#define MOEB_ARCH_NAME_15(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_14(__VA_ARGS__))
#define MOEB_ARCH_NAME_16(a, ...) MOEB_ARCH_JOIN(a, MOEB_ARCH_NAME_15(__VA_ARGS__))
#define MOEB_ARCH_PICK(a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16, name, ...) name
#define MOEB_ARCH_NAME(...)                                                                                             \
  MOEB_ARCH_JOIN(                                                                                                       \
      cuda, MOEB_ARCH_PICK(__VA_ARGS__, MOEB_ARCH_NAME_16, MOEB_ARCH_NAME_15, MOEB_ARCH_NAME_14, MOEB_ARCH_NAME_13,     \
                           MOEB_ARCH_NAME_12, MOEB_ARCH_NAME_11, MOEB_ARCH_NAME_10, MOEB_ARCH_NAME_9, MOEB_ARCH_NAME_8, \
                           MOEB_ARCH_NAME_7, MOEB_ARCH_NAME_6, MOEB_ARCH_NAME_5, MOEB_ARCH_NAME_4, MOEB_ARCH_NAME_3,    \
                           MOEB_ARCH_NAME_2, MOEB_ARCH_NAME_1, unused)(__VA_ARGS__))
#if defined(__CUDA_ARCH_LIST__)
#define MOEB_ARCH_LIST_NAME MOEB_ARCH_NAME(__CUDA_ARCH_LIST__)
#else
#define MOEB_ARCH_LIST_NAME cuda_any
#endif
#define MOEB_ARCH_NAMESPACE_(archs, min_experts, max_experts) archs##_experts_##min_experts##_##max_experts
#define MOEB_ARCH_NAMESPACE_OF(archs, min_experts, max_experts) MOEB_ARCH_NAMESPACE_(archs, min_experts, max_experts)
#define MOEB_ARCH_NAMESPACE \
  MOEB_ARCH_NAMESPACE_OF(MOEB_ARCH_LIST_NAME, MOE_BALANCE_CUDA_MIN_EXPERTS, MOE_BALANCE_CUDA_MAX_EXPERTS)
