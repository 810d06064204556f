# `cmake --build BUILD --target api_reference` makes BUILD/api_reference/html/index.html from the comments in include/, where Doxygen is.
find_program(MOE_BALANCE_DOXYGEN NAMES doxygen)
find_program(MOE_BALANCE_PYTHON python3)
if(MOE_BALANCE_DOXYGEN AND MOE_BALANCE_PYTHON)
  add_custom_target(api_reference
    COMMAND ${CMAKE_COMMAND} -E rm -rf ${PROJECT_BINARY_DIR}/api_reference
    COMMAND ${CMAKE_COMMAND} -E make_directory ${PROJECT_BINARY_DIR}/api_reference
    COMMAND ${CMAKE_COMMAND} -E env MOE_BALANCE_API_REFERENCE=${PROJECT_BINARY_DIR}/api_reference ${MOE_BALANCE_DOXYGEN} docs/Doxyfile
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
    COMMENT "API reference: ${PROJECT_BINARY_DIR}/api_reference/html/index.html"
    VERBATIM)
endif()
