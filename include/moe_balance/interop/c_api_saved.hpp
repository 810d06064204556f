// What `saved` of the C interface begins with, so that the calls which read it know whose it is: C has no mb::Saved.
#pragma once

#include <moe_balance/arguments.hpp>
#include <moe_balance/engine/validate.hpp>
#include <moe_balance/error.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>

MOEB_NAMESPACE_BEGIN

namespace c_api {

/// In front of what the router's calls know.
struct SavedHead {
  static constexpr std::int64_t written = 0x6d6f65622d736176;
  std::int64_t mark;  ///< `written` once forward has filled the rest
  std::int64_t tokens;
  std::int64_t experts;
  std::int64_t sequences;
};
static_assert(sizeof(SavedHead) % 16 == 0);

[[nodiscard]] inline ByteRows bytes_of(const SavedHead& head) {
  return {"saved", &head, sizeof(SavedHead)};
}

/// Bytes of both, where the router's calls need so many; 0 for none, and the largest number there is stays.
[[nodiscard]] inline std::size_t with_head(std::size_t bytes) {
  return bytes == 0 || bytes > std::numeric_limits<std::size_t>::max() - sizeof(SavedHead) ? bytes
                                                                                           : sizeof(SavedHead) + bytes;
}

/// `saved` of `bytes` of one call, of which `needed` are with_head's.
struct SavedOfCall {
  const char* call;
  void* data;
  std::size_t bytes;

  /// What the router's calls know of it.
  [[nodiscard]] SavedRef behind_head(std::size_t needed) const {
    Validator{call}.memory("saved", data, bytes, needed, alignof(SavedHead));
    return {static_cast<std::byte*>(data) + sizeof(SavedHead), bytes - sizeof(SavedHead)};
  }

  /// What forward has written; refuses what it has filled for other experts, so called by `name`, or sequences. Null where there is no memory, which behind_head refuses.
  [[nodiscard]] const SavedHead* written(const char* name, std::int64_t experts, std::int64_t sequences) const {
    if (data == nullptr) return nullptr;
    const Validator check{call};
    check.memory("saved", data, bytes, sizeof(SavedHead), alignof(SavedHead));
    const auto* const head = static_cast<const SavedHead*>(data);
    MOEB_EXPECTS(head->mark == SavedHead::written, call, "saved", "not written", "what moeb_forward has filled");
    check.range(name, experts, head->experts, head->experts, "the experts that saved is of");
    check.range("sequences", sequences, head->sequences, head->sequences, "those that saved is of");
    return head;
  }
};

/// The head, which the router does not know of, from what else forward reads and writes. Shapes first, because where memory ends follows from them.
inline void check_apart(const SavedHead& head, const ForwardArgs& args) {
  const Validator check{"forward"};
  const std::int64_t tokens = args.logits.rows;
  check.matrix("logits", args.logits, tokens, args.logits.columns);
  check.matrix("experts", args.experts, tokens, args.experts.columns);
  check.matrix("weights", args.weights, tokens, args.experts.columns);
  const std::int64_t counts = args.logits.columns * std::int64_t{sizeof(std::int64_t)};
  check.apart({bytes_of(head)},
              {bytes_of("logits", args.logits), bytes_of("experts", args.experts), bytes_of("weights", args.weights),
               bytes_of(args.bias), bytes_of(args.load), ByteRows("counts", args.counts, counts),
               ByteRows("active", args.active, tokens), ByteRows("status", args.status, sizeof(Status))});
}

}  // namespace c_api

MOEB_NAMESPACE_END
