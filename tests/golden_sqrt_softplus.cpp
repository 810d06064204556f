// golden_test's routers with SqrtSoftplus scoring, on the CPU.
#include "engine_host.hpp"
#include "golden_router.hpp"

template golden::Answer golden::ask_sqrt_softplus(const testing::HostEngine&, const golden::Task&);
