// What whole_loops.cpp compiles and whole_loops_main.cpp runs.
#pragma once

#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

/// Forward and backward; K is 8, 6 and 8.
void run_softmax(const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, const mb::Host& host);
void run_sqrt_softplus(const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, const mb::Host& host);
void run_users_policy(const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, const mb::Host& host);
