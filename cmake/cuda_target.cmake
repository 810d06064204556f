# What moe_balance::cuda is, in this project and in the installed package: the library, and C++20 in CUDA sources. CMake before 3.26
# does not know nvcc's C++20, so there the option says it.
function(moe_balance_define_cuda target)
  target_link_libraries(${target} INTERFACE moe_balance::moe_balance)
  if("cuda_std_20" IN_LIST CMAKE_CUDA_COMPILE_FEATURES)
    target_compile_features(${target} INTERFACE cuda_std_20)
  else()
    target_compile_options(${target} INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
  endif()
endfunction()
