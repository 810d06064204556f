// add_noise: random numbers on logits, so that a router explores. Choose with the noisy logits and weigh with the clean ones (Replay), or use the noisy
// ones for both, as noisy top-k gating does. With Gumbel numbers of scale 1 the K largest are a sample of K experts without replacement from the softmax.
//   noisy[t, e] = logits[t, e] + scale * scales[t, e] * n(seed, offset, first_token + t, e)
// Source: Shazeer et al. 2017, arXiv 1701.06538, eq. (4), with scales = softplus of a second projection; Gumbel top-k: Kool et al. 2019, arXiv 1903.06059.
#pragma once

#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/validate.hpp>
#include <moe_balance/numeric/random_numbers.hpp>
#include <moe_balance/token/elements.hpp>
#include <moe_balance/views.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// How the numbers are distributed: standard Gumbel (mean 0.577, variance pi^2 / 6), or normal with mean 0 and variance 1.
enum class NoiseKind : std::uint8_t { gumbel, normal };

/// Which numbers: a token's are the same whatever the call, the engine, the batch and the rank it is in, as long as this and its own number are.
struct NoiseSource {
  NoiseKind kind = NoiseKind::gumbel;  ///< their distribution
  float scale = 1.0f;                  ///< multiplies all
  std::uint64_t seed = 0;    ///< of the run, and of the layer: layers with one seed and offset have the same numbers
  std::uint64_t offset = 0;  ///< of the step, say
  /// Optional, where the call runs: added to offset, for graphs that are replayed.
  const std::uint64_t* offset_on_device = nullptr;
  std::int64_t first_token = 0;  ///< the number of row 0 among all tokens of the offset, on all ranks: 0 to 2^48 - T
};

/// The arguments of add_noise. T tokens, E experts.
struct NoiseArgs {
  ConstAnyMatrix logits;  ///< [T, E]
  /// [T, E] out, float32 or logits' type; may be logits itself. Of numbers that a 16-bit type rounds to equal ones the smaller id is chosen.
  AnyMatrix noisy;
  NoiseSource noise{};      ///< which numbers are added
  ConstAnyMatrix scales{};  ///< [T, E], optional: multiplies each number; float32 or logits' type
};

/// The arguments of add_noise_backward.
struct NoiseBackwardArgs {
  ConstAnyMatrix grad_noisy;  ///< [T, E]; it is the gradient of logits, too
  /// [T, E] out: grad_noisy * scale * number; float32 or grad_noisy's type; may be grad_noisy itself.
  AnyMatrix grad_scales;
  NoiseSource noise{};  ///< as given to add_noise
};

/// sums[t, e] = (terms[t, e], if there are) + numbers * (factors[t, e], if there are).
struct NoiseProblem {
  ConstAnyMatrix terms;
  ConstAnyMatrix factors;
  AnyMatrix sums;
  NoiseSource noise;
};

/// A thread of a GPU has four neighbouring experts of a token, the words of one counter; a CPU's more, whose numbers it finds in vectors.
template <class Real>
struct AddNoise {
  static constexpr bool uses_shared = false;

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& /*tile*/, const NoiseProblem& problem) const {
    constexpr int counters = TileT::slots_in_registers ? 1 : dispatch_tuning.counters_at_once;
    constexpr int columns = 4 * counters;
    const std::int64_t items_of_row = (problem.sums.columns + columns - 1) / columns;
    with_element_type<Real>(problem.sums.type, [&](auto* type) MOEB_LAMBDA {
      using T = std::remove_pointer_t<decltype(type)>;
      for_each_item_of_thread(block, problem.sums.rows * items_of_row, [&](std::int64_t item) MOEB_LAMBDA {
        const std::int64_t row = item / items_of_row;
        const std::int64_t first = item % items_of_row * columns;
        float numbers[4][counters];
        find_numbers(problem.noise, row, first / 4, numbers);
        add_numbers<T>(problem, row, first, numbers);
      });
    });
  }

 private:
  /// numbers[w][c]: of expert 4 (first_counter + c) + w.
  template <int Counters>
  MOEB_INLINE static void find_numbers(const NoiseSource& noise, std::int64_t row, std::int64_t first_counter,
                                       float (&numbers)[4][Counters]) {
    const auto token = static_cast<std::uint64_t>(noise.first_token + row);
    const std::uint64_t offset = noise.offset + (noise.offset_on_device == nullptr ? 0 : *noise.offset_on_device);
    std::uint32_t words[4][Counters];
    for (int c = 0; c < Counters; ++c) {
      words[0][c] = static_cast<std::uint32_t>(token);
      words[1][c] = static_cast<std::uint32_t>(token >> 32 << 16) | static_cast<std::uint32_t>(first_counter + c);
      words[2][c] = static_cast<std::uint32_t>(offset);
      words[3][c] = static_cast<std::uint32_t>(offset >> 32);
    }
    philox(words, noise.seed);
    if (noise.kind == NoiseKind::gumbel)
      scaled(words, noise.scale, numbers, [](float uniform) MOEB_LAMBDA { return gumbel_of(uniform); });
    else
      scaled(words, noise.scale, numbers, [](float uniform) MOEB_LAMBDA { return normal_of(uniform); });
  }

  template <int Counters, class Function>
  MOEB_INLINE static void scaled(const std::uint32_t (&words)[4][Counters], float scale, float (&numbers)[4][Counters],
                                 const Function& number_of) {
    MOEB_UNROLL
    for (int w = 0; w < 4; ++w) {
      for (int c = 0; c < Counters; ++c) numbers[w][c] = mul(scale, number_of(uniform_of(words[w][c])));
    }
  }

  template <class T, int Counters>
  MOEB_INLINE static void add_numbers(const NoiseProblem& problem, std::int64_t row, std::int64_t first,
                                      const float (&numbers)[4][Counters]) {
    MOEB_UNROLL
    for (int i = 0; i < 4 * Counters; ++i) {
      const std::int64_t column = first + i;
      if (column >= problem.sums.columns) return;
      auto term = static_cast<Real>(numbers[i % 4][i / 4]);
      if (problem.factors.data != nullptr) term = mul(term, load_element<Real>(problem.factors, row, column));
      if (problem.terms.data != nullptr) term = add(load_element<Real>(problem.terms, row, column), term);
      static_cast<T*>(problem.sums.data)[row * problem.sums.stride + column] = from_real<T>(term);
    }
  }
};

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
  check.type_beside(written_name, written.type, read.type);
  check_noise(check, noise, read.rows);
}

}  // namespace detail

/// Adds random numbers to logits. A NaN or an infinity stays one. One launch on a GPU, nothing waits for the host. Errors: InvalidArgument before anything
/// is written.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void add_noise(const NoiseArgs& args, Workspace /*workspace*/, const Place& place) {
  DispatchEngine<Place>::check("add_noise", place);
  const DispatchValidator check{{"add_noise"}};
  detail::check_noise_matrices<Place>(check, "logits", args.logits, "noisy", args.noisy, args.noise);
  if (args.scales.data != nullptr) {
    check.matrix("scales", args.scales, args.logits.rows, args.logits.columns);
    check.type_beside("scales", args.scales.type, args.logits.type);
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
