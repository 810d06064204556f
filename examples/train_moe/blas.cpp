#include "blas.hpp"

#include <ATen/Parallel.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include <dlfcn.h>
#include <unistd.h>

namespace train_moe {
namespace {

/// A function of OpenBLAS, or null. Looked up by name, because linking to OpenBLAS would make it a requirement.
template <class Function>
Function* find(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

/// OpenBLAS's name for the best kernels that this processor can run; null where there is nothing to correct.
const char* better_core(const char* core) {
  if (std::strcmp(core, "Prescott") != 0) return nullptr;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    return "SkylakeX";
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "Haswell";
#endif
  return nullptr;
}

}  // namespace

void prepare_blas(char** argv) {
  at::set_num_threads(1);
  const auto set_threads = find<void(int)>("openblas_set_num_threads");
  const auto core_name = find<char*()>("openblas_get_corename");
  if (set_threads == nullptr || core_name == nullptr) {
    std::fprintf(stderr, "train_moe: OpenBLAS is not in use, training will be slow; install libopenblas0-pthread\n");
    return;
  }
  set_threads(1);
  const char* core = better_core(core_name());
  if (core == nullptr || std::getenv("OPENBLAS_CORETYPE") != nullptr) return;
  setenv("OPENBLAS_CORETYPE", core, 1);
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  execv(program.c_str(), argv);  // returns only when it failed: then slow kernels have to do
}

}  // namespace train_moe
