// Routers of jax_test.py as XLA's handlers: every kind of scoring, balancer and result that handlers treat differently.
#include <moe_balance/interop/xla_ffi.hpp>
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

namespace {
constexpr mb::Router softmax{mb::Softmax{}, mb::TopK<2>{},
                             mb::Combine{mb::AuxLoss{.coefficient = 0.5f}, mb::ZLoss{.coefficient = 0.25f}}};
constexpr mb::Router sigmoid{mb::Sigmoid{}, mb::GroupLimitedTopK<4>{.groups = 4, .groups_kept = 2, .scaling_factor = 2.5f},
                             mb::Combine{mb::LossFreeBias{.update_rate = 0.125f}, mb::SequenceLoss{.coefficient = 0.5f}}};
constexpr mb::Router global_batch{mb::Softmax{}, mb::TopK<2>{}, mb::GlobalBatchLoss{.coefficient = 0.5f}};
constexpr mb::Router momentum{mb::Softmax{}, mb::TopK<2>{},
                              mb::SmebuBias{.update_rate = 0.25f, .momentum = 0.75f, .centring = mb::Centring::none}};
constexpr mb::Router quantile{mb::Sigmoid{}, mb::TopK<2>{},
                              mb::QuantileBias{.momentum = 0.75f, .spacing = mb::MarginBins::even, .bins = 64}};
constexpr mb::Router quantile_global_batch{
    mb::Softmax{}, mb::TopK<2>{},
    mb::Combine{
        mb::GlobalBatchLoss{.coefficient = 0.5f},
        mb::QuantileBias{.momentum = 0.75f, .spacing = mb::MarginBins::even, .low = -0.5f, .high = 0.75f, .bins = 10}}};
mb::Router no_bins{mb::Sigmoid{}, mb::TopK<2>{}, mb::QuantileBias{.bins = 0}};
constexpr mb::Router selected{mb::SoftmaxOverSelected{}, mb::TopK<3>{}};
constexpr mb::Router capacity{mb::Softmax{}, mb::WithCapacity<mb::TopK<2>>{.capacity_factor = 0.75},
                              mb::AuxLoss{.coefficient = 0.5f}};
constexpr mb::Router replay{mb::Softmax{}, mb::Replay<mb::TopK<2>>{},
                            mb::Combine{mb::LossFreeBias{.update_rate = 0.25f}, mb::AuxLoss{.coefficient = 0.5f}}};
constexpr mb::Router marked{mb::Softmax{}, mb::TopK<2>{},
                            mb::Combine{mb::GlobalBatchLoss{.coefficient = 0.5f}, mb::LossFreeBias{}, mb::BalancedTokens{}}};
constexpr mb::Router first_choices{
    mb::Softmax{}, mb::TopK<2>{},
    mb::FromPlainTopK<mb::GlobalBatchLoss, 1>{{.coefficient = 0.5f, .window = mb::GlobalBatchWindow::micro_batch}}};
}  // namespace

MOEB_XLA_HANDLERS(softmax, softmax, mb::Host)
MOEB_XLA_HANDLERS(sigmoid, sigmoid, mb::Host)
MOEB_XLA_HANDLERS(global_batch, global_batch, mb::Host)
MOEB_XLA_HANDLERS(momentum, momentum, mb::Host)
MOEB_XLA_HANDLERS(quantile, quantile, mb::Host)
MOEB_XLA_HANDLERS(quantile_global_batch, quantile_global_batch, mb::Host)
MOEB_XLA_HANDLERS(no_bins, no_bins, mb::Host)
MOEB_XLA_HANDLERS(selected, selected, mb::Host)
MOEB_XLA_HANDLERS(capacity, capacity, mb::Host)
MOEB_XLA_HANDLERS(replay, replay, mb::Host)
MOEB_XLA_HANDLERS(marked, marked, mb::Host)
MOEB_XLA_HANDLERS(first_choices, first_choices, mb::Host)
// One handler by itself, through XLA's own macro.
XLA_FFI_DEFINE_HANDLER_SYMBOL(softmax_route_by_xla, (mb::xla::route<softmax, mb::Host>));
