// Part of router_gpu; one family per file, so that they compile side by side.
#include "routers/kept_experts.hpp"
