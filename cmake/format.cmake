# `cmake --build BUILD --target format` formats every source in place.
find_program(MOE_BALANCE_CLANG_FORMAT NAMES clang-format clang-format-14)
if(MOE_BALANCE_CLANG_FORMAT)
  add_custom_target(format
    COMMAND git ls-files -z --cached --others --exclude-standard -- "*.hpp" "*.cuh" "*.cpp" "*.cu"
      | xargs -0 -r ${MOE_BALANCE_CLANG_FORMAT} -i
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
    COMMENT "Formatting with ${MOE_BALANCE_CLANG_FORMAT}"
    VERBATIM)
endif()
