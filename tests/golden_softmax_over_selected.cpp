// golden_test's routers with SoftmaxOverSelected scoring, on the CPU.
#include "engine_host.hpp"
#include "golden_router.hpp"

template golden::Answer golden::ask_softmax_over_selected(const testing::HostEngine&, const golden::Task&);
