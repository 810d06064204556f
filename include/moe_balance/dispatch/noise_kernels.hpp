// The kernel that adds random numbers to logits, and finds them again for the gradient of their scales.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/numeric/random_numbers.hpp>
#include <moe_balance/token/elements.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

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

MOEB_NAMESPACE_END
