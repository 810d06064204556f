// smooth_load, load_loss: the load loss of noisy top-k gating. How many tokens an expert gets is a count, which has no gradient; how likely it is to get them,
// if its own noise is drawn again, has one. After add_noise and a router of the noisy logits:
//   load_e = sum_t Phi((logits_te - w_te) / sigma_te)      loss = coefficient CV^2(load)
// w_te: the noisy logit that e must surpass to be among the token's K. Loads are integers: sum them over ranks (a Sync's start and finish) before load_loss, and the
// loss is that of the whole batch.
// Source: Shazeer et al. 2017, arXiv 1701.06538, appendix A; V-MoE's variant: Riquelme et al. 2021, arXiv 2106.05974, appendix A.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/smooth_load_kernels.hpp>
#include <moe_balance/dispatch/validate.hpp>

#include <cstdint>
#include <string>

MOEB_NAMESPACE_BEGIN

namespace detail {

template <class Place, class Tag = EngineTagOf<Place>>
void check_noisy_choice(const DispatchValidator& check, const NoisyChoice& choice) {
  const ConstAnyMatrix& logits = choice.logits;
  check.shape("choice.logits", logits, 1, max_experts);
  check.range("choice.logits.rows", logits.rows, 0, std::int64_t{1} << 30, "tokens");
  check.matrix("choice.logits", logits, logits.rows, logits.columns);
  MOEB_EXPECTS(DispatchEngine<Place>::serves_float64 || logits.type != DataType::float64, check.call, "choice.logits.type",
               "float64", "float32, bfloat16, float16; float64 on the CPU only");
  check.matrix("choice.noisy", choice.noisy, logits.rows, logits.columns);
  check.type_beside("choice.noisy", choice.noisy.type, logits.type, "choice.logits");
  if (choice.scales.data != nullptr) {
    check.matrix("choice.scales", choice.scales, logits.rows, logits.columns);
    check.type_beside("choice.scales", choice.scales.type, logits.type, "choice.logits");
  }
  check.range("choice.top_k", choice.top_k, 1, logits.columns, "the experts of logits");
  MOEB_EXPECTS(is_finite(choice.scale) && choice.scale > 0.0f, check.call, "choice.scale", std::to_string(choice.scale),
               "more than 0, finite");
  MOEB_EXPECTS(choice.winning <= WinningLogit::last_chosen, check.call, "choice.winning", static_cast<int>(choice.winning),
               "best_of_others, last_chosen");
  check.optional_pointer("choice.tokens_on_device", choice.tokens_on_device, alignof(std::int64_t));
}

/// `written` shares no memory with the batch.
inline void check_apart_from_choice(const DispatchValidator& check, const NoisyChoice& choice, const MemoryRegion& written) {
  check.apart({written, region("choice.logits", choice.logits), region("choice.noisy", choice.noisy),
               region("choice.scales", choice.scales),
               MemoryRegion("choice.active", choice.active, choice.logits.rows, false),
               MemoryRegion("choice.tokens_on_device", choice.tokens_on_device, 8, false)});
}

/// A gradient that may be left out.
inline void check_gradient(const DispatchValidator& check, const char* name, const AnyMatrix& gradient,
                           const NoisyChoice& choice) {
  if (gradient.data == nullptr) return;
  check.matrix(name, gradient, choice.logits.rows, choice.logits.columns);
  check.type_beside(name, gradient.type, choice.logits.type, "choice.logits");
  check_apart_from_choice(check, choice, region(name, gradient));
}

}  // namespace detail

/// Writes load. One launch on a GPU behind the clearing of load, nothing waits for the host. Errors: InvalidArgument before anything is written.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void smooth_load(const SmoothLoadArgs& args, Workspace /*workspace*/, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("smooth_load", place);
  const DispatchValidator check{{"smooth_load"}};
  detail::check_noisy_choice<Place>(check, args.choice);
  const std::int64_t experts = args.choice.logits.columns;
  check.vector("load", args.load, experts, experts, "the experts of choice.logits");
  detail::check_apart_from_choice(check, args.choice, region("load", args.load));
  Engine::clear(args.load.data, static_cast<std::size_t>(experts) * sizeof(std::int64_t), place);
  LaunchSize size = Engine::for_rows(args.choice.logits.rows, experts, place);
  const SmoothLoadProblem problem{args.choice, args.load.data};
  detail::in_real_type_of<Place>(args.choice.logits.type, [&](auto real) {
    using Body = AddSmoothLoad<decltype(real)>;
    size.shared_bytes = Body::shared_bytes(experts);
    Engine::launch("smooth_load", size, Body{}, problem, place);
  });
}

/// Writes grad_load and loss. One launch of one block on a GPU, nothing waits for the host. Errors: InvalidArgument before anything is written.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void load_loss(const LoadLossArgs& args, Workspace /*workspace*/, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("load_loss", place);
  const DispatchValidator check{{"load_loss"}};
  check.vector("load", args.load, 1, max_experts, "experts");
  check.vector("grad_load", args.grad_load, args.load.size, args.load.size, "the experts of load");
  check.finite("coefficient", args.coefficient);
  check.optional_pointer("loss", args.loss, alignof(float));
  check.apart({region("load", args.load), region("grad_load", args.grad_load), MemoryRegion("loss", args.loss, 4, true)});
  Engine::launch("load_loss", LaunchSize{}, FindLoadLoss{},
                 LoadLossProblem{args.load, args.grad_load.data, args.coefficient, args.loss}, place);
}

/// Writes the gradients that are asked for; 0 for tokens and experts that take no part. One launch on a GPU, nothing waits for the host. Errors: InvalidArgument before
/// anything is written.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void smooth_load_backward(const SmoothLoadBackwardArgs& args, Workspace /*workspace*/, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("smooth_load_backward", place);
  const DispatchValidator check{{"smooth_load_backward"}};
  detail::check_noisy_choice<Place>(check, args.choice);
  const std::int64_t experts = args.choice.logits.columns;
  check.vector("grad_load", args.grad_load, experts, experts, "the experts of choice.logits");
  detail::check_gradient(check, "grad_logits", args.grad_logits, args.choice);
  detail::check_gradient(check, "grad_noisy", args.grad_noisy, args.choice);
  MOEB_EXPECTS(args.grad_scales.data == nullptr || args.choice.scales.data != nullptr, check.call, "choice.scales.data",
               "null", "the scales whose gradient grad_scales is");
  detail::check_gradient(check, "grad_scales", args.grad_scales, args.choice);
  check.optional_pointer("grad_loss", args.grad_loss, alignof(float));
  check.finite("loss_scale", args.loss_scale);
  check.apart({region("grad_logits", args.grad_logits), region("grad_noisy", args.grad_noisy),
               region("grad_scales", args.grad_scales), region("grad_load", args.grad_load),
               MemoryRegion("grad_loss", args.grad_loss, 4, false)});
  const SmoothLoadBackwardProblem problem{args.choice,      args.grad_load.data, args.grad_logits, args.grad_noisy,
                                          args.grad_scales, args.grad_loss,      args.loss_scale};
  detail::in_real_type_of<Place>(args.choice.logits.type, [&](auto real) {
    Engine::launch("smooth_load_backward", Engine::for_rows(args.choice.logits.rows, experts, place),
                   SmoothLoadGradients<decltype(real)>{}, problem, place);
  });
}

MOEB_NAMESPACE_END
