// golden_test's routers behind Sinkhorn's scales, on the CPU.
#include "engine_host.hpp"
#include "golden_router.hpp"

template golden::SinkhornAnswer golden::sinkhorn_on(const testing::HostEngine&, const golden::SinkhornTask&);
