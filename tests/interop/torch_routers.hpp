// The routers that the tests of both PyTorch adapters register, under names that torch_test.py knows.
#pragma once

#include <moe_balance/moe_balance.hpp>

namespace routers {

namespace mb = moe_balance;

inline const mb::Router plain{mb::SoftmaxOverSelected{}, mb::TopK<2>{}};
inline const mb::Router balanced{
    mb::Softmax{}, mb::TopK<2>{.renormalise = true},
    mb::Combine{mb::LossFreeBias{.update_rate = 0.25f}, mb::AuxLoss{.coefficient = 1.0f}, mb::ZLoss{.coefficient = 0.5f}}};
inline const mb::Router sequence{mb::Sigmoid{},
                                 mb::GroupLimitedTopK<2>{.groups = 4, .groups_kept = 2, .scaling_factor = 2.5f},
                                 mb::SequenceLoss{.coefficient = 1.0f}};
inline const mb::Router global_batch{mb::Softmax{}, mb::TopK<2>{}, mb::GlobalBatchLoss{.coefficient = 1.0f}};
inline const mb::Router momentum{mb::Softmax{}, mb::TopK<2>{},
                                 mb::SmebuBias{.update_rate = 0.25f, .momentum = 0.75f, .centring = mb::Centring::none}};
inline const mb::Router quantile{mb::Sigmoid{}, mb::TopK<2>{},
                                 mb::QuantileBias{.momentum = 0.75f, .spacing = mb::MarginBins::even, .bins = 64}};
inline const mb::Router quantile_global_batch{
    mb::Softmax{}, mb::TopK<2>{},
    mb::Combine{
        mb::GlobalBatchLoss{.coefficient = 1.0f},
        mb::QuantileBias{.momentum = 0.75f, .spacing = mb::MarginBins::even, .low = -0.5f, .high = 0.75f, .bins = 10}}};
inline const mb::Router capacity{mb::Softmax{},
                                 mb::WithCapacity<mb::TopK<2>>{.capacity_factor = 0.75, .selection = {.renormalise = true}},
                                 mb::AuxLoss{.coefficient = 1.0f}};
inline const mb::Router replay{mb::Softmax{}, mb::Replay{mb::TopK<2>{}},
                               mb::Combine{mb::LossFreeBias{.update_rate = 0.25f}, mb::AuxLoss{.coefficient = 1.0f}}};
inline const mb::Router marked{mb::Softmax{}, mb::TopK<2>{.renormalise = true},
                               mb::Combine{mb::LossFreeBias{.update_rate = 0.25f}, mb::AuxLoss{.coefficient = 1.0f},
                                           mb::ZLoss{.coefficient = 0.5f}, mb::BalancedTokens{}}};
inline const mb::Router marked_margins{
    mb::Softmax{}, mb::TopK<2>{},
    mb::Combine{
        mb::GlobalBatchLoss{.coefficient = 1.0f},
        mb::QuantileBias{.momentum = 0.75f, .spacing = mb::MarginBins::even, .low = -0.5f, .high = 0.75f, .bins = 10},
        mb::BalancedTokens{}}};
inline const mb::Router first_choices{mb::Softmax{}, mb::TopK<2>{},
                                      mb::FromPlainTopK<mb::GlobalBatchLoss, 1>{mb::GlobalBatchLoss{.coefficient = 1.0f}}};

}  // namespace routers
