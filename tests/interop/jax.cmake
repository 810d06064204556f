# XLA's handlers (interop/xla_ffi.hpp) through JAX on the CPU, and examples/jax_moe_layer. JAX brings the headers that handlers are compiled with, so
# that they are compiled by tests.
moe_balance_python_environment(jax "jax>=0.5")

# moe_balance_build_handlers(name OUTPUT SOURCE COMMAND...): the test interop.NAME compiles a file with handlers.
function(moe_balance_build_handlers name output source)
  moe_balance_add_python_test(interop.${name} jax ${MOE_BALANCE_BASH} ${CMAKE_CURRENT_SOURCE_DIR}/build_handlers.sh ${output} ${source} ${ARGN})
  set_tests_properties(interop.${name} PROPERTIES FIXTURES_SETUP ${name})
endfunction()

set(example ${PROJECT_SOURCE_DIR}/examples/jax_moe_layer)
set(options -std=c++20 -O0 ${MOE_BALANCE_CXX_WARNINGS} -I${PROJECT_SOURCE_DIR}/include)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  list(REMOVE_ITEM options -Wpedantic)  # g++ rejects XLA's c_api.h with it, also as a system header
endif()
set(library ${CMAKE_CURRENT_BINARY_DIR}/jax/libjax_handlers.so)
set(example_library ${CMAKE_CURRENT_BINARY_DIR}/jax/libjax_moe_layer.so)
moe_balance_build_handlers(jax_handlers ${library} ${CMAKE_CURRENT_SOURCE_DIR}/jax_handlers.cpp ${CMAKE_CXX_COMPILER_LAUNCHER} ${CMAKE_CXX_COMPILER} ${options})
moe_balance_build_handlers(jax_moe_layer_handlers ${example_library} ${example}/handlers.cpp ${CMAKE_CXX_COMPILER_LAUNCHER} ${CMAKE_CXX_COMPILER} ${options})
find_program(MOE_BALANCE_CLANGXX NAMES clang++ clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14)
if(MOE_BALANCE_CLANGXX)
  moe_balance_build_handlers(jax_handlers_clang ${CMAKE_CURRENT_BINARY_DIR}/jax/clang.o ${example}/handlers.cpp
    ${CMAKE_CXX_COMPILER_LAUNCHER} ${MOE_BALANCE_CLANGXX} -std=c++20 -fsyntax-only ${MOE_BALANCE_CXX_WARNINGS} -I${PROJECT_SOURCE_DIR}/include)
endif()
if(MOE_BALANCE_HAS_CUDA)
  moe_balance_build_handlers(jax_handlers_cuda ${CMAKE_CURRENT_BINARY_DIR}/jax/cuda.o ${example}/handlers_cuda.cu
    ${CMAKE_CUDA_COMPILER_LAUNCHER} ${CMAKE_CUDA_COMPILER} -std=c++20 ${MOE_BALANCE_CUDA_WARNINGS} -I${PROJECT_SOURCE_DIR}/include -arch=sm_90
    ${MOE_BALANCE_NVCC_FRONT_END} -Xcompiler=-fPIC -DMOE_BALANCE_CUDA_MAX_EXPERTS=32)  # all tiers are the same templates
endif()

moe_balance_add_python_test(interop.jax jax python ${CMAKE_CURRENT_SOURCE_DIR}/jax_test.py ${library} ${example})
moe_balance_add_python_test(interop.jax_moe_layer jax python ${example}/main.py ${example_library})
set_tests_properties(interop.jax PROPERTIES FIXTURES_REQUIRED "python_jax;jax_handlers")
set_tests_properties(interop.jax_moe_layer PROPERTIES FIXTURES_REQUIRED "python_jax;jax_moe_layer_handlers")
moe_balance_add_python_test(interop.jax_page jax ${MOE_BALANCE_BASH} ${CMAKE_CURRENT_SOURCE_DIR}/jax_page.sh ${PROJECT_SOURCE_DIR}/docs/interop_jax.md
  ${CMAKE_CURRENT_BINARY_DIR}/jax/page ${example} ${CMAKE_CXX_COMPILER_LAUNCHER} ${CMAKE_CXX_COMPILER} ${options})
set_tests_properties(interop.jax interop.jax_moe_layer interop.jax_page PROPERTIES ENVIRONMENT "JAX_PLATFORMS=cpu;PYTHONDONTWRITEBYTECODE=1")
