// golden_test's routers with Sigmoid scoring, on the CPU.
#include "engine_host.hpp"
#include "golden_router.hpp"

template golden::Answer golden::ask_sigmoid(const testing::HostEngine&, const golden::Task&);
