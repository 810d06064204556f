// The router of this example, for every file that registers it: two of the experts per token, balanced by a bias. Hidden, because PyTorch loads all libraries
// into one namespace of symbols, where one router of this name would serve all of them.
#pragma once

#include <moe_balance/moe_balance.hpp>

[[gnu::visibility("hidden")]] inline const moe_balance::Router moe_router{
    moe_balance::Sigmoid{}, moe_balance::TopK<2>{},
    moe_balance::Combine{moe_balance::LossFreeBias{.update_rate = 1e-2f}, moe_balance::ZLoss{.coefficient = 1e-3f}}};
