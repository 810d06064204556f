// Macros that every header needs: execution space, the versioned namespace, forced inlining and hidden visibility.
#pragma once

#include <moe_balance/version.hpp>

#if __cplusplus < 201709L
#error "moe_balance needs C++20: compile with -std=c++20 or newer"
#endif

/// \def MOEB_HOST_DEVICE
/// Marks whatever runs on both sides, user policies included: `__host__ __device__` for nvcc, nothing elsewhere.
/// \def MOEB_INLINE
/// For what the CPU engine's loops call: they are compiled once per instruction set, and what is not inlined into them is compiled for the oldest.
/// g++ inlines all that a `flatten` function calls, once; clang only what it calls directly, and is asked at every function.
/// They force nothing in a debug build (-O0) or under the address, memory and thread sanitizers, where that costs minutes of compilation; what takes
/// vectors of numbers by value is always inlined, because how it would be called depends on the instruction set.
/// \def MOEB_LAMBDA
/// The same for a lambda, after its parameters.
/// \def MOEB_EARLY_INLINE
/// For what g++ must inline before its other passes, too, because the loops that call it vectorise only then.
/// \def MOEB_EARLY_LAMBDA
/// The same for a lambda.
#if defined(__CUDACC__)
#define MOEB_HOST_DEVICE __host__ __device__
#define MOEB_INLINE __host__ __device__ inline
#define MOEB_LAMBDA
#define MOEB_EARLY_INLINE MOEB_INLINE
#define MOEB_EARLY_LAMBDA
#else
#define MOEB_HOST_DEVICE
#define MOEB_EARLY_INLINE MOEB_FORCED_INLINE inline
#define MOEB_EARLY_LAMBDA MOEB_FORCED_INLINE
#if defined(__clang__)
#define MOEB_INLINE MOEB_EARLY_INLINE
#define MOEB_LAMBDA MOEB_EARLY_LAMBDA
#else
#define MOEB_INLINE inline
#define MOEB_LAMBDA
#endif
#endif

/// \cond
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MOEB_IS_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer) || __has_feature(thread_sanitizer)
#define MOEB_IS_SANITIZED
#endif
#endif
#if defined(__OPTIMIZE__) && !defined(MOEB_IS_SANITIZED)
#define MOEB_FORCED_INLINE __attribute__((always_inline))
#else
#define MOEB_FORCED_INLINE
#endif

#if defined(__CUDACC__)
#define MOEB_NOINLINE __host__ __device__ __noinline__
#else
#define MOEB_NOINLINE __attribute__((noinline))
#endif

// Before a function that templates for both sides call but that only ever runs on the CPU: nvcc does not complain of what it calls.
#if defined(__CUDACC__)
#define MOEB_NO_EXECUTION_CHECK _Pragma("nv_exec_check_disable")
#else
#define MOEB_NO_EXECUTION_CHECK
#endif

// Host compilers warn of a pragma that they do not know.
#if defined(__CUDA_ARCH__)
#define MOEB_UNROLL _Pragma("unroll")
#define MOEB_NO_UNROLL _Pragma("unroll 1")
#define MOEB_UNROLL_BY_4 _Pragma("unroll 4")
#define MOEB_UNROLL_BY_8 _Pragma("unroll 8")
#else
#define MOEB_UNROLL
#define MOEB_NO_UNROLL
#define MOEB_UNROLL_BY_4
#define MOEB_UNROLL_BY_8
#endif

// For what no other shared object may share: kernels, their launchers, and what registers functions of this object with a framework.
#define MOEB_HIDDEN __attribute__((visibility("hidden")))

#define MOEB_CONCATENATE_(a, b, c, d) a##b##_##c##_##d
#define MOEB_CONCATENATE(a, b, c, d) MOEB_CONCATENATE_(a, b, c, d)

/// \endcond

/// Everything lives in `moe_balance`, inside an inline namespace that carries the version, so that two shared objects built
/// against different versions never share a symbol.
#define MOEB_VERSION_NAMESPACE MOEB_CONCATENATE(v, MOEB_VERSION_MAJOR, MOEB_VERSION_MINOR, MOEB_VERSION_PATCH)
/// Opens the library's namespaces.
#define MOEB_NAMESPACE_BEGIN \
  namespace moe_balance {    \
  inline namespace MOEB_VERSION_NAMESPACE {
/// Closes them.
#define MOEB_NAMESPACE_END \
  }                        \
  }
