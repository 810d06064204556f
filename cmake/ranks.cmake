# moe_balance::mpi and moe_balance::nccl: the library, and what sync/mpi.hpp and sync/nccl.hpp include. Read by this project and by the installed
# package. Both are optional: a target is defined only where MPI or NCCL is found.

# MPI 3 or newer. Its C++ bindings, which some installations still have, are left out: they need another library.
macro(moe_balance_find_mpi)
  set(MPI_CXX_SKIP_MPICXX ON)
  find_package(MPI 3.0 QUIET COMPONENTS CXX)
endmacro()

function(moe_balance_define_mpi target)
  target_link_libraries(${target} INTERFACE moe_balance::moe_balance MPI::MPI_CXX)
endfunction()

# NCCL 2.18 or newer, and the CUDA runtime it needs: in CUDA's own folders or where NCCL_ROOT says.
macro(moe_balance_find_nccl)
  find_package(CUDAToolkit QUIET)
  find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${NCCL_ROOT} ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
  find_library(NCCL_LIBRARY nccl HINTS ${NCCL_ROOT} ${CUDAToolkit_LIBRARY_DIR} PATH_SUFFIXES lib lib64)
  mark_as_advanced(NCCL_INCLUDE_DIR NCCL_LIBRARY)
  set(NCCL_FOUND FALSE)
  if(NCCL_INCLUDE_DIR AND NCCL_LIBRARY AND TARGET CUDA::cudart)
    file(STRINGS ${NCCL_INCLUDE_DIR}/nccl.h NCCL_VERSION_LINES REGEX "^#define NCCL_(MAJOR|MINOR) [0-9]+$")
    list(TRANSFORM NCCL_VERSION_LINES REPLACE ".* ([0-9]+)$" "\\1")
    list(JOIN NCCL_VERSION_LINES "." NCCL_VERSION)
    if(NCCL_VERSION VERSION_GREATER_EQUAL 2.18)
      set(NCCL_FOUND TRUE)
    endif()
  endif()
endmacro()

function(moe_balance_define_nccl target)
  target_include_directories(${target} SYSTEM INTERFACE ${NCCL_INCLUDE_DIR})
  target_link_libraries(${target} INTERFACE moe_balance::moe_balance ${NCCL_LIBRARY} CUDA::cudart)
endfunction()
