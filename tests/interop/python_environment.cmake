# Python packages for tests: installed under the build folder by a test that others depend on, so that configuring downloads nothing.

# moe_balance_python_environment(name PACKAGE...): the test interop.python_NAME makes a virtual environment with the packages.
function(moe_balance_python_environment name)
  set(environment ${CMAKE_CURRENT_BINARY_DIR}/python_${name})
  add_test(NAME interop.python_${name} COMMAND ${MOE_BALANCE_BASH} ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/python_environment.sh ${environment} ${ARGN})
  set_tests_properties(interop.python_${name} PROPERTIES LABELS interop TIMEOUT 600 SKIP_RETURN_CODE 77 FIXTURES_SETUP python_${name})
endfunction()

# moe_balance_add_python_test(test environment COMMAND...): a command that finds that environment's python first in PATH; it is
# skipped, with the reason, where the environment could not be made. A command of its own may also skip, by exit code 77.
function(moe_balance_add_python_test test environment)
  add_test(NAME ${test} COMMAND ${MOE_BALANCE_BASH} ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/python_environment.sh
    ${CMAKE_CURRENT_BINARY_DIR}/python_${environment} --run ${ARGN})
  set_tests_properties(${test} PROPERTIES LABELS interop TIMEOUT 600 SKIP_RETURN_CODE 77 FIXTURES_REQUIRED python_${environment})
endfunction()
