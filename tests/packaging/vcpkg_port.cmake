# cmake -DPORT_DIR=DIR -DBUILD=DIR -DCXX=COMPILER -P vcpkg_port.cmake: runs the port's portfile with stand-ins for the functions that it calls, each of
# which does what vcpkg documents of it, and leaves a tree like vcpkg's in BUILD/packages. A call that vcpkg does not have is an error.
cmake_minimum_required(VERSION 3.25)
set(CURRENT_PORT_DIR ${PORT_DIR})
set(CURRENT_PACKAGES_DIR ${BUILD}/packages)
set(CURRENT_BUILDTREES_DIR ${BUILD}/buildtrees)
cmake_path(GET PORT_DIR FILENAME PORT)
file(REMOVE_RECURSE ${BUILD})

# vcpkg_cmake_configure(SOURCE_PATH <path> [OPTIONS <option>...]): from vcpkg-cmake.
function(vcpkg_cmake_configure)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "SOURCE_PATH" "OPTIONS")
  if(DEFINED arg_UNPARSED_ARGUMENTS OR NOT EXISTS "${arg_SOURCE_PATH}/CMakeLists.txt")
    message(FATAL_ERROR "vcpkg_cmake_configure: '${arg_UNPARSED_ARGUMENTS}', SOURCE_PATH ${arg_SOURCE_PATH}")
  endif()
  execute_process(
    COMMAND ${CMAKE_COMMAND} -S ${arg_SOURCE_PATH} -B ${CURRENT_BUILDTREES_DIR} -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_BUILD_TYPE=Release
      -DCMAKE_INSTALL_PREFIX=${CURRENT_PACKAGES_DIR} ${arg_OPTIONS}
    OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
  load_cache(${CURRENT_BUILDTREES_DIR} READ_WITH_PREFIX cached_ MOE_BALANCE_TESTS MOE_BALANCE_BENCH MOE_BALANCE_EXAMPLES MOE_BALANCE_CUDA)
  foreach(option MOE_BALANCE_TESTS MOE_BALANCE_BENCH MOE_BALANCE_EXAMPLES MOE_BALANCE_CUDA)
    if(cached_${option})
      message(FATAL_ERROR "the port leaves ${option} on")
    endif()
  endforeach()
endfunction()

function(vcpkg_cmake_install)
  execute_process(COMMAND ${CMAKE_COMMAND} --build ${CURRENT_BUILDTREES_DIR} --target install OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# vcpkg_cmake_config_fixup(PACKAGE_NAME <name> CONFIG_PATH <path>): from vcpkg-cmake-config. Moves the package's files to share/<name> and tells its
# targets that they lie two folders below the prefix.
function(vcpkg_cmake_config_fixup)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "PACKAGE_NAME;CONFIG_PATH" "")
  if(DEFINED arg_UNPARSED_ARGUMENTS OR NOT IS_DIRECTORY "${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH}")
    message(FATAL_ERROR "vcpkg_cmake_config_fixup: '${arg_UNPARSED_ARGUMENTS}', CONFIG_PATH ${arg_CONFIG_PATH}")
  endif()
  file(RENAME ${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH} ${CURRENT_PACKAGES_DIR}/share/${arg_PACKAGE_NAME})
  file(REMOVE_RECURSE ${CURRENT_PACKAGES_DIR}/share/cmake)
  file(GLOB targets ${CURRENT_PACKAGES_DIR}/share/${arg_PACKAGE_NAME}/*[Tt]argets.cmake)
  foreach(file IN LISTS targets)
    file(READ ${file} text)
    string(REGEX REPLACE "get_filename_component\\(_IMPORT_PREFIX \"\\\${CMAKE_CURRENT_LIST_FILE}\" PATH\\)(\nget_filename_component\\(_IMPORT_PREFIX \"\\\${_IMPORT_PREFIX}\" PATH\\))*"
      "get_filename_component(_IMPORT_PREFIX \"\${CMAKE_CURRENT_LIST_FILE}\" PATH)\nget_filename_component(_IMPORT_PREFIX \"\${_IMPORT_PREFIX}\" PATH)\nget_filename_component(_IMPORT_PREFIX \"\${_IMPORT_PREFIX}\" PATH)"
      text "${text}")
    file(WRITE ${file} "${text}")
  endforeach()
endfunction()

function(vcpkg_fixup_pkgconfig)
  file(GLOB found ${CURRENT_PACKAGES_DIR}/share/pkgconfig/*.pc ${CURRENT_PACKAGES_DIR}/lib/pkgconfig/*.pc)
  if(NOT found)
    message(FATAL_ERROR "vcpkg_fixup_pkgconfig: there is no .pc file")
  endif()
endfunction()

function(vcpkg_install_copyright)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "" "FILE_LIST")
  configure_file("${arg_FILE_LIST}" ${CURRENT_PACKAGES_DIR}/share/${PORT}/copyright COPYONLY)
endfunction()

include(${CURRENT_PORT_DIR}/portfile.cmake)

# What vcpkg's post-build checks ask of a header-only port whose .pc file has Libs.
foreach(wanted include lib/pkgconfig/moe_balance.pc share/${PORT}/copyright share/${PORT}/usage share/moe_balance/moe_balanceConfig.cmake)
  if(NOT EXISTS ${CURRENT_PACKAGES_DIR}/${wanted})
    message(FATAL_ERROR "the port does not install ${wanted}")
  endif()
endforeach()
foreach(unwanted debug bin share/cmake share/licenses share/pkgconfig)
  if(EXISTS ${CURRENT_PACKAGES_DIR}/${unwanted})
    message(FATAL_ERROR "the port leaves ${unwanted}")
  endif()
endforeach()
