# An overlay port of this clone: vcpkg install moe-balance --overlay-ports=cmake/packaging/vcpkg. A registry replaces SOURCE_PATH by vcpkg_from_git.
get_filename_component(SOURCE_PATH "${CURRENT_PORT_DIR}/../../../.." ABSOLUTE)
set(VCPKG_BUILD_TYPE release) # header-only: nothing to build twice

vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS
    -DMOE_BALANCE_TESTS=OFF
    -DMOE_BALANCE_BENCH=OFF
    -DMOE_BALANCE_EXAMPLES=OFF
    -DMOE_BALANCE_CUDA=OFF)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(PACKAGE_NAME moe_balance CONFIG_PATH share/cmake/moe_balance)
# vcpkg wants a .pc file with Libs, here -pthread, under lib/.
file(MAKE_DIRECTORY "${CURRENT_PACKAGES_DIR}/lib")
file(RENAME "${CURRENT_PACKAGES_DIR}/share/pkgconfig" "${CURRENT_PACKAGES_DIR}/lib/pkgconfig")
vcpkg_fixup_pkgconfig()
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/debug" "${CURRENT_PACKAGES_DIR}/share/licenses")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
file(INSTALL "${CURRENT_PORT_DIR}/usage" DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}")
