// The tokens of a call, in the order of the sequences they belong to.
#pragma once

#include <moe_balance/views.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// The rows of one segment's tokens, equally far apart.
struct SegmentRows {
  std::int64_t first;
  std::int64_t step;
  [[nodiscard]] MOEB_INLINE std::int64_t operator[](std::int64_t index) const { return first + index * step; }
};

/// Segment s holds size(s) tokens; its i-th is row token(s, i). Calls without sequences have one segment.
struct Segments {
  Sequences sequences{};
  std::int64_t tokens = 0;
  std::int64_t length = 0;  ///< of every sequence, where all are equally long

  Segments() = default;
  Segments(const Sequences& of, std::int64_t token_count)
      : sequences(of), tokens(token_count), length(token_count / of.count) {}

  [[nodiscard]] MOEB_INLINE std::int64_t count() const { return sequences.count; }

  [[nodiscard]] MOEB_INLINE std::int64_t size(std::int64_t segment) const {
    if (sequences.layout != Sequences::Layout::offsets) return length;
    return bounded(sequences.offsets[segment + 1]) - bounded(sequences.offsets[segment]);
  }

  [[nodiscard]] MOEB_INLINE SegmentRows rows(std::int64_t segment) const {
    if (sequences.layout == Sequences::Layout::token_major) return {segment, sequences.count};
    if (sequences.layout == Sequences::Layout::offsets) return {bounded(sequences.offsets[segment]), 1};
    return {segment * length, 1};
  }

  [[nodiscard]] MOEB_INLINE std::int64_t token(std::int64_t segment, std::int64_t index) const {
    return rows(segment)[index];
  }

 private:
  /// Offsets in device memory cannot be checked before the call: none may lead outside the rows.
  [[nodiscard]] MOEB_INLINE std::int64_t bounded(std::int64_t offset) const {
    return offset < 0 ? 0 : offset > tokens ? tokens : offset;
  }
};

MOEB_NAMESPACE_END
