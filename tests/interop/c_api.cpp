// The one C++ file of the shared object that c_program.c links and c_api_test.py loads.
#include <moe_balance/interop/c_api.hpp>
