// add_noise: random numbers on logits, so that a router explores. Choose with the noisy logits and weigh with the clean ones (Replay), or use the noisy
// ones for both, as noisy top-k gating does. With Gumbel numbers of scale 1 the K largest are a sample of K experts without replacement from the softmax,
// down to probabilities of 1e-7.
//   noisy[t, e] = logits[t, e] + scale * scales[t, e] * n(seed, offset, first_token + t, e)
// Source: Shazeer et al. 2017, arXiv 1701.06538, eq. (4), with scales = softplus of a second projection; Gumbel top-k: Kool et al. 2019, arXiv 1903.06059.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/noise_kernels.hpp>
#include <moe_balance/dispatch/validate.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

namespace detail {

inline void check_noise(const DispatchValidator& check, const NoiseSource& noise, std::int64_t tokens) {
  constexpr std::int64_t most = std::int64_t{1} << 48;
  MOEB_EXPECTS(noise.kind <= NoiseKind::normal, check.call, "noise.kind", static_cast<int>(noise.kind), "gumbel, normal");
  check.finite("noise.scale", noise.scale);
  check.optional_pointer("noise.offset_on_device", noise.offset_on_device, alignof(std::uint64_t));
  check.range("noise.first_token", noise.first_token, 0, most - tokens, "2^48 tokens have numbers of their own");
}

/// Whether the two are one matrix, of which each element is read before it is written.
[[nodiscard]] inline bool is_same_matrix(const ConstAnyMatrix& a, const AnyMatrix& b) {
  return a.data == b.data && a.type == b.type && (a.stride == b.stride || a.rows <= 1);
}

template <class Place, class Tag = EngineTagOf<Place>>
void run_noise(const char* call, const NoiseProblem& problem, const Place& place) {
  using Engine = DispatchEngine<Place>;
  const std::int64_t items = problem.sums.rows * ((problem.sums.columns + 3) / 4);  // of a GPU's threads
  in_real_type_of<Place>(problem.sums.type, [&](auto real) {
    Engine::launch(call, Engine::for_items(items, place), AddNoise<decltype(real)>{}, problem, place);
  });
}

/// What both calls demand: a first matrix that they read, and one that they write.
template <class Place, class Tag = EngineTagOf<Place>>
void check_noise_matrices(const DispatchValidator& check, const char* read_name, const ConstAnyMatrix& read,
                          const char* written_name, const AnyMatrix& written, const NoiseSource& noise) {
  constexpr std::int64_t most_rows = std::int64_t{1} << 48;
  check.shape(read_name, read, 1, max_experts);
  check.range({read_name, "rows"}, read.rows, 0, most_rows, "tokens");
  check.matrix(read_name, read, read.rows, read.columns);
  MOEB_EXPECTS(DispatchEngine<Place>::serves_float64 || read.type != DataType::float64, check.call,
               ArgumentName(read_name, "type"), "float64", "float32, bfloat16, float16; float64 on the CPU only");
  check.matrix(written_name, written, read.rows, read.columns);
  check.type_beside(written_name, written.type, read.type, read_name);
  check_noise(check, noise, read.rows);
}

}  // namespace detail

/// Adds random numbers to logits. A logit that is NaN or infinite stays so, where scale and scales are finite and their product with a number is, too.
/// One launch on a GPU, nothing waits for the host. Errors: InvalidArgument before anything is written.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void add_noise(const NoiseArgs& args, Workspace /*workspace*/, const Place& place) {
  DispatchEngine<Place>::check("add_noise", place);
  const DispatchValidator check{{"add_noise"}};
  detail::check_noise_matrices<Place>(check, "logits", args.logits, "noisy", args.noisy, args.noise);
  if (args.scales.data != nullptr) {
    check.matrix("scales", args.scales, args.logits.rows, args.logits.columns);
    check.type_beside("scales", args.scales.type, args.logits.type, "logits");
  }
  const MemoryRegion offset("noise.offset_on_device", args.noise.offset_on_device, 8, false);
  check.apart({region("noisy", args.noisy), region("scales", args.scales), offset});
  if (!detail::is_same_matrix(args.logits, args.noisy)) {
    check.apart({region("noisy", args.noisy), region("logits", args.logits)});
  }
  detail::run_noise("add_noise", {args.logits, args.scales, args.noisy, args.noise}, place);
}

/// grad_scales[t, e] = grad_noisy[t, e] * scale * the number that add_noise added. One launch on a GPU, nothing waits for the host. Errors:
/// InvalidArgument before anything is written.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void add_noise_backward(const NoiseBackwardArgs& args, Workspace /*workspace*/, const Place& place) {
  DispatchEngine<Place>::check("add_noise_backward", place);
  const DispatchValidator check{{"add_noise_backward"}};
  detail::check_noise_matrices<Place>(check, "grad_noisy", args.grad_noisy, "grad_scales", args.grad_scales, args.noise);
  const MemoryRegion offset("noise.offset_on_device", args.noise.offset_on_device, 8, false);
  check.apart({region("grad_scales", args.grad_scales), offset});
  if (!detail::is_same_matrix(args.grad_noisy, args.grad_scales)) {
    check.apart({region("grad_scales", args.grad_scales), region("grad_noisy", args.grad_noisy)});
  }
  detail::run_noise("add_noise_backward", {{}, args.grad_noisy, args.grad_scales, args.noise}, place);
}

MOEB_NAMESPACE_END
