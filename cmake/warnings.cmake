# moe_balance_warnings: what every test, benchmark and example of this project is compiled with. Users do not inherit it.
add_library(moe_balance_warnings INTERFACE)

# Off for a compiler that this project has not been tested with, as bench/gpu_check.sh may meet one.
option(MOE_BALANCE_WARNINGS_AS_ERRORS "Warnings in tests, benchmarks and examples are errors" ON)

set(MOE_BALANCE_CXX_WARNINGS -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror)
# nvcc's generated host code is not pedantic, and its own casts are not ours.
set(MOE_BALANCE_CUDA_WARNINGS --Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Werror)
if(NOT MOE_BALANCE_WARNINGS_AS_ERRORS)
  set(MOE_BALANCE_CXX_WARNINGS -Wall -Wextra)
  set(MOE_BALANCE_CUDA_WARNINGS)
endif()

target_compile_options(moe_balance_warnings INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:${MOE_BALANCE_CXX_WARNINGS}>"
  "$<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:${MOE_BALANCE_CUDA_WARNINGS}>")
