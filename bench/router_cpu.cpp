// Forward, backward, route and update of the library's routers on the CPU.
#include "routers/counted_apart.hpp"
#include "routers/elementwise.hpp"
#include "routers/kept_experts.hpp"
#include "routers/margins.hpp"
#include "routers/softmax_large_k.hpp"
#include "routers/softmax_over_selected.hpp"
#include "routers/softmax_small_k.hpp"
#include "routers/softmax_top8.hpp"
