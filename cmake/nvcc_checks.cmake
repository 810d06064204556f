# How nvcc compiles what no GPU will run, for its errors and warnings alone. Registers, spills and optimised code are tests/compile's.
#   MOE_BALANCE_NVCC_QUICK      all of device code, hardly optimised
#   MOE_BALANCE_NVCC_FRONT_END  device code's syntax, types, templates; not whether a kernel calls a function of the host: what has device code
#                               of its own is compiled with QUICK, and the library's own kernels are in tests/compile
option(MOE_BALANCE_CUDA_CHECK_ONLY "No GPU will run the tests and examples: nvcc checks them and generates little or no device code" OFF)
set(MOE_BALANCE_NVCC_QUICK -G)
set(MOE_BALANCE_NVCC_FRONT_END -G)
if(MOE_BALANCE_HAS_CUDA AND CMAKE_CUDA_COMPILER_ID STREQUAL "NVIDIA")
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --help OUTPUT_VARIABLE nvcc_help ERROR_QUIET)
  if(nvcc_help MATCHES "\\(-Ofc\\)")
    set(MOE_BALANCE_NVCC_QUICK -Ofc=max)
  endif()
  if(nvcc_help MATCHES "\\(-fdevice-syntax-only\\)")
    set(MOE_BALANCE_NVCC_FRONT_END -fdevice-syntax-only)
  endif()
endif()

if(MOE_BALANCE_CUDA_CHECK_ONLY)
  add_compile_options("$<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:${MOE_BALANCE_NVCC_QUICK}>")
endif()
