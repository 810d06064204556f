// The sets of instructions that the CPU engine is compiled for, one chosen at run time, so that a program built with plain -O2 is fast; all give the same
// bits.
#pragma once

#include <moe_balance/views.hpp>

#include <algorithm>

MOEB_NAMESPACE_BEGIN

#if defined(__x86_64__) && defined(__GNUC__)
/// The machine's widest instruction set that is not above the one asked for.
[[nodiscard]] inline InstructionSet usable_instructions(InstructionSet wanted) {
  static const InstructionSet widest = [] {
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    return v4 ? InstructionSet::x86_64_v4 : v3 ? InstructionSet::x86_64_v3 : InstructionSet::baseline;
  }();
  return wanted == InstructionSet::automatic ? widest : std::min(wanted, widest);
}

// f is inlined whole into each version: that is what compiles it for the version's instructions. They are added to what the program itself is
// compiled for (-march=native, say), which target("arch=...") would replace. Upper halves of registers are left clear, or the program's older instructions
// would be slow from here on: g++ sees to that by itself from -O2 on only.
#define MOEB_TARGET_V3 "avx2,fma,bmi,bmi2"
#define MOEB_TARGET_V4 MOEB_TARGET_V3 ",avx512f,avx512bw,avx512cd,avx512dq,avx512vl"
template <class Function, class... Args>
__attribute__((noinline, flatten, target(MOEB_TARGET_V4))) void run_x86_64_v4(const Function& f, Args... args) {
  f(args...);
  __builtin_ia32_vzeroupper();
}
template <class Function, class... Args>
__attribute__((noinline, flatten, target(MOEB_TARGET_V3))) void run_x86_64_v3(const Function& f, Args... args) {
  f(args...);
  __builtin_ia32_vzeroupper();
}
#undef MOEB_TARGET_V3
#undef MOEB_TARGET_V4
#endif

/// Runs f, compiled for the program's own instructions.
template <class Function, class... Args>
__attribute__((noinline, flatten)) void run_baseline(const Function& f, Args... args) {
  f(args...);
#if defined(__AVX__) && defined(__GNUC__)
  __builtin_ia32_vzeroupper();
#endif
}

/// The same for what is compiled for wider instructions, too, and used without them by processors only that call the C library for each fused multiply-add:
/// less to compile is worth more there than speed.
template <class Function, class... Args>
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__FMA__)
__attribute__((noinline, cold, flatten))
#else
__attribute__((noinline, flatten))
#endif
void run_seldom(const Function& f, Args... args) {
  f(args...);
#if defined(__AVX__) && defined(__GNUC__)
  __builtin_ia32_vzeroupper();
#endif
}

#if !defined(__x86_64__) || !defined(__GNUC__)
[[nodiscard]] inline InstructionSet usable_instructions(InstructionSet /*wanted*/) {
  return InstructionSet::baseline;
}
#endif

/// A set that a function knows when it is compiled; converts to an InstructionSet.
template <InstructionSet Set>
struct InstructionSetConstant {
  MOEB_INLINE constexpr operator InstructionSet() const { return Set; }
};

/// Runs f(InstructionSetConstant), compiled for that set.
template <class Function>
void run_for(InstructionSet wanted, const Function& f) {
  [[maybe_unused]] const InstructionSet set = usable_instructions(wanted);
#if defined(__x86_64__) && defined(__GNUC__)
  if (set == InstructionSet::x86_64_v4)
    return run_x86_64_v4([&]() MOEB_LAMBDA { f(InstructionSetConstant<InstructionSet::x86_64_v4>{}); });
  if (set == InstructionSet::x86_64_v3)
    return run_x86_64_v3([&]() MOEB_LAMBDA { f(InstructionSetConstant<InstructionSet::x86_64_v3>{}); });
#endif
  run_baseline([&]() MOEB_LAMBDA { f(InstructionSetConstant<InstructionSet::baseline>{}); });
}

/// The same for a loop of fused multiply-adds, which is compiled small for processors without them, and, if `Narrow`, for no wider vectors than x86-64-v3 has.
template <bool Narrow, class Function>
void run_loop_for(InstructionSet wanted, const Function& f) {
#if defined(__x86_64__) && defined(__GNUC__)
  const InstructionSet set = usable_instructions(wanted);
  if constexpr (!Narrow) {
    if (set == InstructionSet::x86_64_v4)
      return run_x86_64_v4([&]() MOEB_LAMBDA { f(InstructionSetConstant<InstructionSet::x86_64_v4>{}); });
  }
  if (set != InstructionSet::baseline)
    return run_x86_64_v3([&]() MOEB_LAMBDA { f(InstructionSetConstant<InstructionSet::x86_64_v3>{}); });
#else
  static_cast<void>(wanted);
#endif
  run_seldom([&]() MOEB_LAMBDA { f(InstructionSetConstant<InstructionSet::baseline>{}); });
}

/// f(args...) as a function of its own for the instructions of the loop that calls it: compiled once in a file, where f has a type that all loops share. A
/// compiler knows what becomes of memory that an argument points to, but not of what a lambda has captured.
MOEB_NO_EXECUTION_CHECK
template <class Function, class... Args>
MOEB_EARLY_INLINE void run_apart([[maybe_unused]] InstructionSet set, const Function& f, Args... args) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (set == InstructionSet::x86_64_v4) return run_x86_64_v4(f, args...);
  run_x86_64_v3(f, args...);
#else
  run_baseline(f, args...);
#endif
}

/// The same for work that gains nothing by wider vectors than x86-64-v3 has.
MOEB_NO_EXECUTION_CHECK
template <class Function>
MOEB_EARLY_INLINE void run_apart_narrow(const Function& f) {
#if defined(__x86_64__) && defined(__GNUC__)
  run_x86_64_v3(f);
#else
  run_baseline(f);
#endif
}

/// The set of run_apart_narrow.
#if defined(__x86_64__) && defined(__GNUC__)
inline constexpr InstructionSet narrow_set = InstructionSet::x86_64_v3;
#else
inline constexpr InstructionSet narrow_set = InstructionSet::baseline;
#endif

/// run_apart called from a loop for any set, never `automatic`.
MOEB_NO_EXECUTION_CHECK
template <class Function, class... Args>
MOEB_EARLY_INLINE void run_apart_for(InstructionSet set, const Function& f, Args... args) {
  if (set == InstructionSet::baseline)
    run_seldom(f, args...);
  else
    run_apart(set, f, args...);
}

/// The same for no wider vectors than x86-64-v3 has.
MOEB_NO_EXECUTION_CHECK
template <class Function, class... Args>
MOEB_EARLY_INLINE void run_apart_narrow_for(InstructionSet set, const Function& f, Args... args) {
  run_apart_for(set == InstructionSet::baseline ? set : narrow_set, f, args...);
}

/// Whether work whose all is in vectors is for a set. Baseline x86-64 calls the C library for each fused multiply-add.
[[nodiscard]] MOEB_INLINE constexpr bool is_for_vectors([[maybe_unused]] InstructionSet set) {
#if defined(__x86_64__)
  return set != InstructionSet::baseline;
#else
  return true;
#endif
}

MOEB_NAMESPACE_END
