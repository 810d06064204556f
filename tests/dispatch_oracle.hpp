// What a dispatch must be, in plain loops over doubles that share no code with the library.
#pragma once

#include "dispatch_run.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace testing {

/// The permutation, found expert by expert.
struct PermutationOracle {
  std::vector<std::int64_t> offsets{0};
  std::vector<std::int64_t> counts;
  std::vector<std::int64_t> row_of_slot;
  std::vector<std::int64_t> slot_of_row;
  std::vector<std::int32_t> expert_of_block;

  explicit PermutationOracle(const DispatchProblem& p)
      : row_of_slot(p.ids.size(), -1),
        slot_of_row(static_cast<std::size_t>(p.rows()), -1),
        expert_of_block(static_cast<std::size_t>(p.rows() / p.block_size), -1) {
    std::int64_t row = 0;
    for (std::int64_t e = 0; e < p.experts; ++e) {
      std::int64_t count = 0;
      const std::int64_t first = row;
      for (std::size_t slot = 0; slot < p.ids.size(); ++slot) {
        if (p.ids[slot] != e) continue;
        ++count;
        if (!p.has_rows(e)) continue;
        if (p.rows_per_expert > 0 && count > p.rows_per_expert) continue;
        row_of_slot[slot] = row;
        slot_of_row[static_cast<std::size_t>(row)] = static_cast<std::int64_t>(slot);
        ++row;
      }
      counts.push_back(count);
      if (p.rows_per_expert > 0 && p.has_rows(e)) row = first + p.rows_per_expert;
      while (row % p.align != 0) ++row;
      offsets.push_back(row);
      for (std::int64_t block = first / p.block_size; block < row / p.block_size; ++block) {
        expert_of_block[static_cast<std::size_t>(block)] = static_cast<std::int32_t>(e);
      }
    }
  }
};

/// Compares decoded values; `terms` roundings of sums of about `size` each are allowed, and one to the stored type.
inline void check_close(const char* what, mb::DataType type, const Bytes& got, const std::vector<double>& want,
                        const std::vector<double>& magnitudes, std::int64_t columns, std::int64_t excess) {
  CAPTURE(what);
  const std::vector<double> all = decoded(type, got);
  const std::vector<double> values = without_excess(all, columns, excess);
  REQUIRE(values.size() == want.size());
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double allowed = 2 * half_ulp(type) * std::abs(want[i]) + 0x1p-20 * magnitudes[i] + 0x1p-24;
    if (!(std::abs(values[i] - want[i]) <= allowed)) ++wrong;
  }
  CHECK(wrong == 0);
  std::size_t touched = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (static_cast<std::int64_t>(i) % (columns + excess) >= columns && all[i] != untouched_value) ++touched;
  }
  CHECK(touched == 0);
}

/// Rows of doubles with the sum of the terms' sizes beside each.
struct Sums {
  std::vector<double> values;
  std::vector<double> magnitudes;
  explicit Sums(std::int64_t size) : values(static_cast<std::size_t>(size), 0.0), magnitudes(values) {}
  void add(std::int64_t at, double term) {
    values[static_cast<std::size_t>(at)] += term;
    magnitudes[static_cast<std::size_t>(at)] += std::abs(term);
  }
};

inline double at(const std::vector<double>& values, std::int64_t index) {
  return values[static_cast<std::size_t>(index)];
}

/// rows[r] = tokens[token of r] * factor; padding as the problem says.
inline Sums gathered(const DispatchProblem& p, const std::vector<std::int64_t>& slot_of_row,
                     const std::vector<double>& tokens, bool scaled) {
  Sums rows(p.rows() * p.hidden);
  for (std::int64_t r = 0; r < p.rows(); ++r) {
    const std::int64_t slot = slot_of_row[static_cast<std::size_t>(r)];
    for (std::int64_t c = 0; c < p.hidden; ++c) {
      const double padding = p.padding == mb::Padding::zero ? 0.0 : untouched_value;
      rows.add(r * p.hidden + c,
               slot < 0 ? padding : at(tokens, slot / p.k * p.hidden + c) * (scaled ? at(p.weights, slot) : 1.0));
    }
  }
  return rows;
}

/// Whether a slot's expert returns what it is given.
inline bool is_identity(const DispatchProblem& p, const std::vector<std::int64_t>& row_of_slot, std::int64_t slot) {
  const auto s = static_cast<std::size_t>(slot);
  return row_of_slot[s] < 0 && p.ids[s] >= p.identity.first && p.ids[s] < p.identity.first + p.identity.count;
}

/// tokens[t] = sum over its rows of factor * row, and of factor * own[t] for experts that return what they are given.
inline Sums scattered(const DispatchProblem& p, const std::vector<std::int64_t>& row_of_slot, bool weighted,
                      const std::vector<double>& own) {
  Sums tokens(p.tokens * p.hidden);
  for (std::int64_t slot = 0; slot < p.slots(); ++slot) {
    const std::int64_t row = row_of_slot[static_cast<std::size_t>(slot)];
    const bool is_own = is_identity(p, row_of_slot, slot);
    if (row < 0 && !is_own) continue;
    for (std::int64_t c = 0; c < p.hidden; ++c) {
      const std::int64_t to = slot / p.k * p.hidden + c;
      tokens.add(to,
                 (is_own ? at(own, to) : at(p.expert_outputs, row * p.hidden + c)) * (weighted ? at(p.weights, slot) : 1.0));
    }
  }
  return tokens;
}

/// <tokens[t], row of the slot> for every slot; <tokens[t], own[t]> for experts that return what they are given, where there is an `own`.
inline Sums dotted(const DispatchProblem& p, const std::vector<std::int64_t>& row_of_slot, const std::vector<double>& tokens,
                   const std::vector<double>* own) {
  Sums dots(p.slots());
  for (std::int64_t slot = 0; slot < p.slots(); ++slot) {
    const std::int64_t row = row_of_slot[static_cast<std::size_t>(slot)];
    const bool is_own = own != nullptr && is_identity(p, row_of_slot, slot);
    if (row < 0 && !is_own) continue;
    for (std::int64_t c = 0; c < p.hidden; ++c) {
      const std::int64_t of_token = slot / p.k * p.hidden + c;
      dots.add(slot, at(tokens, of_token) * (is_own ? at(*own, of_token) : at(p.expert_outputs, row * p.hidden + c)));
    }
  }
  return dots;
}

inline void check_dispatch(const DispatchProblem& p, const DispatchResults& got) {
  const PermutationOracle want(p);
  CHECK(got.offsets == want.offsets);
  CHECK(got.counts == want.counts);
  CHECK(got.row_of_slot == want.row_of_slot);
  CHECK(got.slot_of_row == want.slot_of_row);
  CHECK(got.expert_of_block == want.expert_of_block);
  for (const std::int64_t value : got.excess) REQUIRE(value == 99);

  const auto close = [&](const char* what, mb::DataType type, const Bytes& bytes, const Sums& sums, std::int64_t columns) {
    check_close(what, type, bytes, sums.values, sums.magnitudes, columns, p.stride_excess);
  };
  close("permuted", p.type, got.permuted, gathered(p, want.slot_of_row, p.hidden_states, false), p.hidden);
  close("scaled", p.type, got.scaled, gathered(p, want.slot_of_row, p.hidden_states, true), p.hidden);
  close("permuted_by_slots", p.type, got.permuted_by_slots, gathered(p, want.slot_of_row, p.hidden_states, false), p.hidden);
  close("scaled_by_slots", p.type, got.scaled_by_slots, gathered(p, want.slot_of_row, p.hidden_states, true), p.hidden);
  CHECK(got.permuted_by_slots == got.permuted);
  CHECK(got.scaled_by_slots == got.scaled);
  close("combined", p.type, got.combined, scattered(p, want.row_of_slot, true, p.hidden_states), p.hidden);
  close("summed", p.type, got.summed, scattered(p, want.row_of_slot, false, p.hidden_states), p.hidden);
  close("grad_outputs", p.type, got.grad_outputs, gathered(p, want.slot_of_row, p.grad_combined, true), p.hidden);
  close("grad_summed", p.type, got.grad_summed, gathered(p, want.slot_of_row, p.grad_combined, false), p.hidden);
  close("grad_weights", p.factor_type, got.grad_weights, dotted(p, want.row_of_slot, p.grad_combined, &p.hidden_states),
        p.k);
  close("grad_hidden", p.type, got.grad_hidden, scattered(p, want.row_of_slot, true, p.grad_combined), p.hidden);
  close("grad_scale", p.factor_type, got.grad_scale, dotted(p, want.row_of_slot, p.hidden_states, nullptr), p.k);
}

}  // namespace testing
