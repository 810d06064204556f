// Part of router_gpu; one family per file, so that they compile side by side.
#include "routers/counted_apart.hpp"
