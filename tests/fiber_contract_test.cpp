// CONTRACT.md, "Numbers" and "Running", for the CUDA kernels' bodies, on fibers. Every call has an order of lanes and blocks of its own.
#include "engine_fibers.hpp"

#include "bodies/contract_numbers.hpp"
#include "bodies/contract_running.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_7, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_7_bits, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_8, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_8_order, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_9, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_9_scorings, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_10, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_16, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_13, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_15, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_15_again, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_15_route, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_15_twice, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(route_is_forward, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(replay_ids, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(row_strides, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(many_layers, FiberEngine);

}  // namespace testing
