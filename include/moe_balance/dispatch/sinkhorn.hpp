// sinkhorn: a scale for each expert with which the experts share the tokens of a batch equally, by Sinkhorn's algorithm. A
// router that adds log_scale to the logits as a bias chooses as a Sinkhorn router does. For batches that have to be balanced
// at once, without a loss or a bias that learns. Not causal: a token's experts depend on all tokens of the call.
//   C = exp(logits), d1 = 1, then until mean_j |change of d1_j| <= tolerance:
//   d0_t = 1 / (T (sum_j C_tj d1_j + 1e-8))     d1_j = 1 / (E (sum_t C_tj d0_t + 1e-8))
//   log_scale = log d1: the K best of d1_j C_tj d0_t are the K best of logits_tj + log_scale_j
// Source: Lewis et al. 2021, arXiv 2103.16716 (BASE layers); Clark et al. 2022, arXiv 2202.01169 (S-BASE); Megatron-Core's
// sinkhorn, whose constants these are.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/sinkhorn_kernels.hpp>
#include <moe_balance/dispatch/validate.hpp>

#include <cstddef>
#include <cstdint>
#include <string>

MOEB_NAMESPACE_BEGIN

namespace detail {

/// What sinkhorn keeps in its workspace, all of it cleared before the first launch.
struct SinkhornScratch {
  std::int64_t* sums;
  std::int64_t* done;
  std::int64_t* tokens;
  float* scales;

  [[nodiscard]] static constexpr std::size_t bytes(std::int64_t experts) {
    const auto count = static_cast<std::size_t>(experts);
    return ((3 * count + 3) * sizeof(std::int64_t) + 2 * count * sizeof(float) + 15) / 16 * 16;
  }
  SinkhornScratch(const Workspace& workspace, std::int64_t experts)
      : sums(static_cast<std::int64_t*>(workspace.data)),
        done(sums + 3 * experts),
        tokens(done + 2),
        scales(reinterpret_cast<float*>(tokens + 1)) {}
};

template <class Place, class Tag = EngineTagOf<Place>>
void check_sinkhorn(const DispatchValidator& check, const SinkhornArgs& args, const Workspace& workspace) {
  const std::int64_t tokens = args.logits.rows;
  const std::int64_t experts = args.logits.columns;
  check.shape("logits", args.logits, 1, max_experts);
  check.range("logits.rows", tokens, 0, most_sinkhorn_tokens, "tokens");
  check.matrix("logits", args.logits, tokens, experts);
  MOEB_EXPECTS(DispatchEngine<Place>::serves_float64 || args.logits.type != DataType::float64, check.call, "logits.type",
               "float64", "float32, bfloat16, float16; float64 on the CPU only");
  check.vector("log_scale", args.log_scale, experts, experts, "the experts of logits");
  MOEB_EXPECTS(is_finite(args.tolerance) && args.tolerance >= 0.0f, check.call, "tolerance", std::to_string(args.tolerance),
               "0 or more, finite");
  check.range("max_iterations", args.max_iterations, 1, 10000);
  check.optional_pointer("tokens_on_device", args.tokens_on_device, alignof(std::int64_t));
  check.optional_pointer("iterations", args.iterations, alignof(std::int32_t));
  check.memory("workspace", workspace.data, workspace.bytes, SinkhornScratch::bytes(experts), 16);
  check.apart({region("log_scale", args.log_scale), region("logits", args.logits),
               MemoryRegion("active", args.active, tokens, false),
               MemoryRegion("tokens_on_device", args.tokens_on_device, 8, false),
               MemoryRegion("iterations", args.iterations, 4, true), region(workspace)});
}

}  // namespace detail

/// Bytes of Workspace that sinkhorn needs. Errors: InvalidArgument.
[[nodiscard]] inline std::size_t sinkhorn_workspace_bytes(std::int64_t experts) {
  Validator{"sinkhorn_workspace_bytes"}.range("experts", experts, 1, max_experts);
  return detail::SinkhornScratch::bytes(experts);
}

/// Writes log_scale, all 0 where no token takes part. Computed in float32 whatever the logits' type. max_iterations + 1
/// launches on a GPU, of which those that are not needed return at once; nothing waits for the host. Errors: InvalidArgument
/// before anything is written.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void sinkhorn(const SinkhornArgs& args, Workspace workspace, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("sinkhorn", place);
  detail::check_sinkhorn<Place>(DispatchValidator{{"sinkhorn"}}, args, workspace);
  const std::int64_t experts = args.logits.columns;
  const detail::SinkhornScratch scratch(workspace, experts);
  Engine::clear(workspace.data, detail::SinkhornScratch::bytes(experts), place);
  SinkhornProblem problem{args.logits,         args.active,         args.tokens_on_device, args.tolerance, 0,
                          args.max_iterations, args.log_scale.data, args.iterations,       scratch.sums,   scratch.scales,
                          scratch.done,        scratch.tokens};
  LaunchSize size = Engine::for_rows(args.logits.rows, experts, place);
  detail::in_real_type_of<Place>(args.logits.type, [&](auto real) {
    using Body = IterateSinkhorn<decltype(real)>;
    size.shared_bytes = Body::shared_bytes(experts);
    for (; problem.iteration <= args.max_iterations; ++problem.iteration) {
      if (problem.iteration == args.max_iterations) size.blocks = 1;
      Engine::launch("sinkhorn", size, Body{}, problem, place);
      if constexpr (Engine::reads_arguments) {
        if (*problem.done_of(problem.iteration) != 0) break;
      }
    }
  });
}

MOEB_NAMESPACE_END
