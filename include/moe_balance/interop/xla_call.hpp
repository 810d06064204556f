// What all handlers of XLA's foreign-function interface share: the place where a call runs, its attributes, errors, and a status of its own.
#pragma once

#include <moe_balance/engine/engine.hpp>
#include <moe_balance/engine/validate.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/interop/xla_buffers.hpp>
#include <moe_balance/views.hpp>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <optional>
#include <type_traits>

/// XLA has nothing to say of the CPU that a handler runs on; `threads` is an attribute.
template <>
struct xla::ffi::CtxBinding<moe_balance::Host> {
  using Ctx = moe_balance::Host;
};
template <>
struct xla::ffi::CtxDecoding<moe_balance::Host> {
  using Type = moe_balance::Host;
  static std::optional<Type> Decode(const XLA_FFI_Api* /*api*/, XLA_FFI_ExecutionContext* /*context*/,
                                    DiagnosticEngine& /*diagnostic*/) {
    return Type{};
  }
};

MOEB_NAMESPACE_BEGIN

namespace xla {

// Attributes by their names.
inline constexpr char threads_name[] = "threads";
inline constexpr char sequences_name[] = "sequences";
inline constexpr char token_major_name[] = "token_major";
inline constexpr char align_name[] = "align";
inline constexpr char rows_per_expert_name[] = "rows_per_expert";
inline constexpr char top_k_name[] = "top_k";
using Threads = ffi::Attr<std::int64_t, threads_name>;
using SequenceCount = ffi::Attr<std::int64_t, sequences_name>;
using TokenMajor = ffi::Attr<std::int64_t, token_major_name>;
using Align = ffi::Attr<std::int64_t, align_name>;
using RowsPerExpert = ffi::Attr<std::int64_t, rows_per_expert_name>;
using TopKCount = ffi::Attr<std::int64_t, top_k_name>;

/// A place with the threads that a call asked for; a GPU has no use for them.
template <class Place>
[[nodiscard]] Place with_threads(const char* call, Place place, std::int64_t threads) {
  Validator{call}.range("threads", threads, 0, std::numeric_limits<int>::max(),
                        "0: all cores that the calling thread may run on");
  if constexpr (std::is_same_v<Place, Host>) place.threads = static_cast<int>(threads);
  return place;
}

/// Runs `call`; whatever it throws becomes an error of XLA.
template <class Call>
[[nodiscard]] ffi::Error guarded(const Call& call) noexcept {
  try {
    call();
    return ffi::Error::Success();
  } catch (const InvalidArgument& error) {
    return ffi::Error::InvalidArgument(error.what());
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  } catch (...) {
    return ffi::Error::Internal("moe_balance: an exception of unknown type");
  }
}

/// Brings an operand's contents to the result that replaces it. Aliased buffers are one already.
template <class Place, class Tag = EngineTagOf<Place>>
void carry_over(const void* from, void* to, std::size_t bytes, const Place& place) {
  if (from != to && bytes != 0) Engine<Place>::copy(to, from, bytes, place);
}

template <class Place, class Tag = EngineTagOf<Place>>
[[nodiscard]] Status* cleared_status(const Reader& read, const Operand& buffer, const Place& place) {
  Status* status = read.status(buffer);
  Engine<Place>::clear(status, sizeof(Status), place);
  return status;
}

}  // namespace xla

MOEB_NAMESPACE_END
