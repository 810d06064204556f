// What a CUDA file may define before it includes the library, or a build system for all its files.
#pragma once

/// \def MOE_BALANCE_CUDA_MAX_EXPERTS
/// The most experts that this file's CUDA kernels serve, 1 to 2048 and at least K, as a decimal number defined before the first include. Kernels for
/// more are not compiled, and a call with more raises InvalidArgument. Files of one program may differ, but an inline function of theirs that calls a
/// router may then be either file's.
/// \def MOE_BALANCE_CUDA_MIN_EXPERTS
/// The fewest experts that this file's kernels are made for, 1 to the most. Fewer are served by kernels for more: slower, with the same bits.
#if !defined(MOE_BALANCE_CUDA_MAX_EXPERTS)
#define MOE_BALANCE_CUDA_MAX_EXPERTS 2048
#endif
#if !defined(MOE_BALANCE_CUDA_MIN_EXPERTS)
#define MOE_BALANCE_CUDA_MIN_EXPERTS 1
#endif
