#include <moe_balance/topk/top_k.hpp>
