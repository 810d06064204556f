# Installs the headers and the package that find_package(moe_balance [COMPONENTS cuda mpi nccl]) finds. Needs no compiler.
include(CMakePackageConfigHelpers)

set(MOE_BALANCE_PACKAGE_DIR ${CMAKE_INSTALL_DATADIR}/cmake/moe_balance)

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/moe_balance
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.hpp" PATTERN "*.cuh" PATTERN "*.h")
# What Python programs copy beside their own.
install(FILES ${PROJECT_SOURCE_DIR}/examples/torch_moe_layer/moe_ops.py ${PROJECT_SOURCE_DIR}/examples/jax_moe_layer/moe_balance_jax.py
  DESTINATION ${CMAKE_INSTALL_DATADIR}/moe_balance_python)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/moe_balance)

install(TARGETS moe_balance EXPORT moe_balanceTargets)
install(EXPORT moe_balanceTargets NAMESPACE moe_balance:: DESTINATION ${MOE_BALANCE_PACKAGE_DIR})

configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/moe_balanceConfig.cmake.in ${PROJECT_BINARY_DIR}/moe_balanceConfig.cmake
  INSTALL_DESTINATION ${MOE_BALANCE_PACKAGE_DIR}
  NO_SET_AND_CHECK_MACRO)
# Before 1.0 a minor version may break its users.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/moe_balanceConfigVersion.cmake
  COMPATIBILITY SameMinorVersion
  ARCH_INDEPENDENT)
install(
  FILES ${PROJECT_BINARY_DIR}/moe_balanceConfig.cmake ${PROJECT_BINARY_DIR}/moe_balanceConfigVersion.cmake
    ${PROJECT_SOURCE_DIR}/cmake/cuda_target.cmake ${PROJECT_SOURCE_DIR}/cmake/ranks.cmake
  DESTINATION ${MOE_BALANCE_PACKAGE_DIR})

# For builds without CMake. Under share/, because it depends on no architecture.
configure_file(${PROJECT_SOURCE_DIR}/cmake/moe_balance.pc.in ${PROJECT_BINARY_DIR}/moe_balance.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/moe_balance.pc DESTINATION share/pkgconfig)
