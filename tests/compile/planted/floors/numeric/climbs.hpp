#include <moe_balance/router.hpp>
