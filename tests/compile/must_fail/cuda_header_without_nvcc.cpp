// EXPECT: moe_balance.cuh needs nvcc: C\+\+ files include moe_balance.hpp
#include <moe_balance/moe_balance.cuh>
