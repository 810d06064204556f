// golden_test's routers with Softmax scoring, on the CPU.
#include "engine_host.hpp"
#include "golden_router.hpp"

template golden::Answer golden::ask_softmax(const testing::HostEngine&, const golden::Task&);
