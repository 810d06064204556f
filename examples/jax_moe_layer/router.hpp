// The router of this example. Put your own here, or a preset: `constexpr mb::presets::DeepSeekV3<> router{};`.
#pragma once

#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

namespace {
constexpr mb::Router router{mb::Softmax{}, mb::TopK<2>{},
                            mb::Combine{mb::GlobalBatchLoss{.coefficient = 1e-2f}, mb::LossFreeBias{.update_rate = 1e-2f}}};
}
