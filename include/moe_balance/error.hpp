// Errors: one exception type per cause, each message naming the argument, its value and what is allowed.
#pragma once

#include <moe_balance/config.hpp>

#include <atomic>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

MOEB_NAMESPACE_BEGIN

/// An argument that breaks a documented precondition. Thrown on the host before anything is enqueued or written.
class InvalidArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// The CUDA runtime reported an error, either of this call or an earlier, sticky one (the message says which).
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A sum over ranks that did not come about: a rank left, stalled or failed, or the library that carries the sum says so. The message names
/// the call, this rank, what it waited for and for how many seconds. Every later call on the same Sync raises it again.
class SyncError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A saved state that cannot be written or read: truncated, corrupted, of another version or shape, or none at all.
class StateError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Gets the message of an error before it is raised; the message is valid during the call only. It may be called by any thread.
using ErrorHandler = void (*)(const char* message);

/// Prints the message to stderr.
inline void print_error(const char* message) {
  std::fprintf(stderr, "%s\n", message);
}

/// What set_error_handler has set.
#if defined(__cpp_exceptions)
inline std::atomic<ErrorHandler> error_handler{nullptr};
#else
inline std::atomic<ErrorHandler> error_handler{print_error};
#endif

/// Sets what is called with every error and returns what was set before. With exceptions there is none at first, and the exception is
/// thrown when the handler has returned. With -fno-exceptions it is print_error at first, and the program aborts when the handler has
/// returned: a handler that logs, flushes or restarts ends the program itself. It must not leave by std::longjmp, past destructors that
/// would not run. Null: nothing is called. All files of a program are compiled with exceptions, or all without; each shared object with
/// hidden symbols has a handler of its own.
inline ErrorHandler set_error_handler(ErrorHandler handler) {
  return error_handler.exchange(handler);
}

/// Hands the message to the error handler, then throws `Error`; with -fno-exceptions aborts.
template <class Error>
[[noreturn]] void raise(const std::string& message) {
  if (const ErrorHandler handler = error_handler.load()) handler(message.c_str());
#if defined(__cpp_exceptions)
  throw Error(message);
#else
  std::abort();
#endif
}

/// What a message calls an argument: name, name.field, or name[index].
struct ArgumentName {
  const char* name;
  const char* field = nullptr;
  std::int64_t index = -1;

  constexpr ArgumentName(const char* whole) : name(whole) {}
  constexpr ArgumentName(const char* owner, const char* member) : name(owner), field(member) {}
  constexpr ArgumentName(const char* array, std::int64_t element) : name(array), index(element) {}
};

/// A piece of a message: a text, which it refers to, or a number.
struct MessagePiece {
  const char* text = nullptr;
  std::int64_t number = 0;

  MessagePiece(const char* piece) : text(piece) {}
  MessagePiece(const std::string& piece) : text(piece.c_str()) {}
  template <std::integral Integer>
  MessagePiece(Integer piece) : number(static_cast<std::int64_t>(piece)) {}
};

// Messages are put together in these two functions alone, and only when a check fails: checks do not allocate, and a file that makes many
// compiles no string operations for each.

[[gnu::noinline, gnu::cold]] inline void append_pieces(std::string& message, std::initializer_list<MessagePiece> pieces) {
  for (const MessagePiece& piece : pieces) message += piece.text != nullptr ? piece.text : std::to_string(piece.number);
}

/// Raises InvalidArgument: "moe_balance: <call>: <argument> is <value>; allowed: <allowed>".
[[noreturn, gnu::noinline, gnu::cold]] inline void fail_argument(const char* call, const ArgumentName& argument,
                                                                 const MessagePiece& value,
                                                                 std::initializer_list<MessagePiece> allowed) {
  std::string message;
  append_pieces(message, {"moe_balance: ", call, ": ", argument.name});
  if (argument.field != nullptr) append_pieces(message, {".", argument.field});
  if (argument.index >= 0) append_pieces(message, {"[", argument.index, "]"});
  append_pieces(message, {" is ", value, "; allowed: "});
  append_pieces(message, allowed);
  raise<InvalidArgument>(message);
}

MOEB_NAMESPACE_END

/// Checks a precondition. `argument` is a name or an ArgumentName; `value` a text or a whole number; what is allowed, one or more of these.
#define MOEB_EXPECTS(condition, call, argument, value, ...)                               \
  do {                                                                                    \
    if (!(condition)) ::moe_balance::fail_argument(call, argument, value, {__VA_ARGS__}); \
  } while (false)
