// What a policy must offer. Each concept has a test that a type without one member is refused with a message naming it.
#pragma once

#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/scoring_concepts.hpp>
#include <moe_balance/sync_concepts.hpp>
#include <moe_balance/top_k_concepts.hpp>
