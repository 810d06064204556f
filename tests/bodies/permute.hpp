// The promises of permute with row_of_slot and without, and of indices that disagree, on any engine.
#pragma once

#include "../dispatch_oracle.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace testing {

/// Elements between an aligned address and a matrix.
struct Shifts {
  std::size_t from;
  std::size_t to;
};

/// Hidden states of any bits, and the rows that they become.
struct BytesOfRows {
  DispatchProblem p;
  Shifts shifts;
  Bytes from{};
  Bytes want{};

  [[nodiscard]] std::size_t element() const { return mb::size_of(p.type); }
  [[nodiscard]] std::size_t row() const { return element() * static_cast<std::size_t>(p.hidden); }

  void fill(const PermutationOracle& order, Random& random) {
    from.resize(shifts.from * element() + static_cast<std::size_t>(p.tokens) * row());
    for (std::uint8_t& byte : from) byte = static_cast<std::uint8_t>(random.bits());
    want.assign(shifts.to * element() + order.slot_of_row.size() * row(), 0xab);
    for (std::size_t r = 0; r < order.slot_of_row.size(); ++r) {
      const std::int64_t slot = order.slot_of_row[r];
      std::uint8_t* to = want.data() + shifts.to * element() + r * row();
      if (slot >= 0)
        std::memcpy(to, from.data() + shifts.from * element() + static_cast<std::size_t>(slot / p.k) * row(), row());
      else if (p.padding == mb::Padding::zero)
        std::memset(to, 0, row());
    }
  }
};

template <class Engine>
void check_copies(const BytesOfRows& bytes, const PermutationOracle& order) {
  const Engine engine;
  const DispatchProblem& p = bytes.p;
  using Longs = typename Engine::template Array<std::int64_t>;
  typename Engine::template Array<std::uint8_t> from(engine, bytes.from);
  Longs row_of_slot(engine, order.row_of_slot);
  Longs slot_of_row(engine, order.slot_of_row);
  const mb::MatrixView<const std::int64_t> by_slots(row_of_slot.data(), p.tokens, p.k);
  for (const auto& rows_of : {mb::MatrixView<const std::int64_t>{}, by_slots}) {
    typename Engine::template Array<std::uint8_t> to(engine, Bytes(bytes.want.size(), 0xab));
    mb::permute({.hidden = {from.data() + bytes.shifts.from * bytes.element(), p.type, p.tokens, p.hidden, p.hidden},
                 .slot_of_row = {slot_of_row.data(), p.rows()},
                 .permuted = {to.data() + bytes.shifts.to * bytes.element(), p.type, p.rows(), p.hidden, p.hidden},
                 .top_k = static_cast<int>(p.k),
                 .padding = p.padding,
                 .row_of_slot = rows_of},
                {}, engine.place());
    engine.wait();
    CHECK(to.values() == bytes.want);
  }
}

TEST_CASE_TEMPLATE_DEFINE("dispatch: permute keeps every bit of rows that begin anywhere, with row_of_slot and without",
                          Engine, dispatch_copies) {
  Random random(18);
  for (const mb::DataType type : {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16}) {
    for (const std::int64_t hidden : {7, 8, 40, 520}) {
      for (const Shifts& shifts : {Shifts{0, 0}, Shifts{1, 0}, Shifts{0, 1}, Shifts{3, 3}, Shifts{2, 8}}) {
        CAPTURE(hidden);
        CAPTURE(shifts.from);
        CAPTURE(shifts.to);
        BytesOfRows bytes{dispatch_problem(18, 9, 3, 5, hidden, 4), shifts};
        bytes.p.type = type;
        bytes.p.padding = shifts.to == 1 ? mb::Padding::untouched : mb::Padding::zero;
        const PermutationOracle order(bytes.p);
        bytes.fill(order, random);
        check_copies<Engine>(bytes, order);
      }
    }
  }
}

/// Indices of which some name each other and most do not; where calls cannot look at them before the work, some lie outside their ranges.
struct DisagreeingIndices {
  std::int64_t tokens;
  std::int64_t k;
  std::int64_t rows;
  std::vector<std::int64_t> row_of_slot{};
  std::vector<std::int64_t> slot_of_row{};
  std::int64_t outside = 0;

  [[nodiscard]] std::int64_t slots() const { return tokens * k; }

  void fill(Random& random, bool spoils) {
    const auto index = [&](std::int64_t count) -> std::int64_t { return random.integer(-1, static_cast<int>(count) - 1); };
    for (std::int64_t slot = 0; slot < slots(); ++slot) row_of_slot.push_back(index(rows));
    for (std::int64_t row = 0; row < rows; ++row) slot_of_row.push_back(index(slots()));
    for (std::int64_t i = 0; slots() > 0 && i < rows / 2; ++i) {
      const std::int64_t row = random.integer(0, static_cast<int>(rows) - 1);
      const std::int64_t slot = random.integer(0, static_cast<int>(slots()) - 1);
      slot_of_row[static_cast<std::size_t>(row)] = slot;
      row_of_slot[static_cast<std::size_t>(slot)] = row;
    }
    if (spoils) {
      spoil(random, row_of_slot, rows);
      spoil(random, slot_of_row, slots());
    }
  }
  /// The slot of a row that names it too; -1: none.
  [[nodiscard]] std::int64_t slot_of(std::int64_t row) const {
    const std::int64_t slot = slot_of_row[static_cast<std::size_t>(row)];
    if (slot < 0 || slot >= slots()) return -1;
    return row_of_slot[static_cast<std::size_t>(slot)] == row ? slot : -1;
  }

 private:
  void spoil(Random& random, std::vector<std::int64_t>& indices, std::int64_t count) {
    const std::int64_t bad[] = {-2, count, std::int64_t{1} << 40, -(std::int64_t{1} << 40)};
    for (std::int64_t& value : indices) {
      if (!random.chance(0.2)) continue;
      value = bad[random.integer(0, 3)];
      ++outside;
    }
  }
};

/// Both calls that take both indices, with factors that make exact products and without; two rows behind theirs must stay as they are.
template <class Engine>
void check_disagreeing(const DisagreeingIndices& indices, std::int64_t hidden, mb::DataType type, mb::Padding padding,
                       std::int64_t excess, Random& random) {
  const Engine engine;
  using Typed = TypedMatrix<Engine>;
  const std::int64_t rows = indices.rows;
  const std::int64_t k = indices.k;
  const auto states = rounded_to(type, random.normals<double>(static_cast<std::size_t>(indices.tokens * hidden), 1.0, 3.0));
  std::vector<double> factors;
  for (std::int64_t slot = 0; slot < indices.slots(); ++slot) factors.push_back(random.integer(0, 1) == 0 ? -2.0 : 4.0);
  Typed tokens(engine, type, indices.tokens, hidden, excess, states);
  Typed weights(engine, mb::DataType::float32, indices.tokens, k, excess, factors);
  typename Engine::template Array<mb::Status> status(engine, {mb::Status{}});
  typename Engine::template Array<std::int64_t> slots_of(engine, indices.slot_of_row);
  typename Engine::template Array<std::int64_t> rows_of(engine,
                                                        with_excess(indices.row_of_slot, k, excess, std::int64_t{0}));
  const mb::MatrixView<const std::int64_t> row_view(rows_of.data(), indices.tokens, k, k + excess);
  const mb::VectorView<const std::int64_t> slot_view(slots_of.data(), rows);

  const auto check = [&](const mb::ConstAnyMatrix& scale, const auto& call) {
    Typed to(engine, type, rows + 2, hidden, excess);
    mb::AnyMatrix view = to.view();
    view.rows = rows;
    call(view, scale);
    engine.wait();
    std::vector<double> want;
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t slot = indices.slot_of(row);
      for (std::int64_t c = 0; c < hidden; ++c) {
        const double other = padding == mb::Padding::zero ? 0.0 : untouched_value;
        const double factor = slot < 0 || scale.data == nullptr ? 1.0 : at(factors, slot);
        want.push_back(slot < 0 ? other : at(states, slot / k * hidden + c) * factor);
      }
    }
    want.resize(static_cast<std::size_t>((rows + 2) * hidden), untouched_value);
    CHECK(decoded(type, to.bytes()) == with_excess(want, hidden, excess, untouched_value));
  };
  const auto permute = [&](const mb::AnyMatrix& to, const mb::ConstAnyMatrix& scale) {
    mb::permute({.hidden = tokens.view(),
                 .slot_of_row = slot_view,
                 .permuted = to,
                 .top_k = static_cast<int>(k),
                 .scale = scale,
                 .padding = padding,
                 .status = status.data(),
                 .row_of_slot = row_view},
                {}, engine.place());
  };
  const auto combine_backward = [&](const mb::AnyMatrix& to, const mb::ConstAnyMatrix& scale) {
    mb::combine_backward({.grad_combined = tokens.view(),
                          .row_of_slot = row_view,
                          .slot_of_row = slot_view,
                          .grad_permuted = to,
                          .weights = scale,
                          .padding = padding,
                          .status = status.data()},
                         {}, engine.place());
  };
  check({}, permute);
  check(weights.view(), permute);
  check({}, combine_backward);
  check(weights.view(), combine_backward);
  CHECK(status.values()[0].invalid_rows == 4 * indices.outside);
}

TEST_CASE_TEMPLATE_DEFINE("dispatch: a row gets the token of its slot if each names the other, and is padding otherwise",
                          Engine, dispatch_disagreeing) {
  constexpr bool counts = !mb::DispatchEngine<decltype(Engine{}.place())>::reads_arguments;
  const mb::DataType types[] = {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16};
  Random random(19);
  for (int round = 0; round < 24; ++round) {
    CAPTURE(round);
    DisagreeingIndices indices{random.integer(1, 30), random.integer(1, 4), random.integer(1, 90)};
    indices.fill(random, counts && round % 4 != 0);
    const std::int64_t hidden_sizes[] = {5, 8, 136, 264};
    check_disagreeing<Engine>(indices, hidden_sizes[round % 4], types[round % 3],
                              round % 5 == 0 ? mb::Padding::untouched : mb::Padding::zero, round % 7 == 0 ? 3 : 0, random);
  }
}

}  // namespace testing
