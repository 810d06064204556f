// Errors: one exception type per cause, each message naming the argument, its value and what is allowed.
#pragma once

#include <moe_balance/config.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>
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

/// Raises InvalidArgument: "moe_balance: <call>: <argument> is <value>; allowed: <allowed>".
[[noreturn]] inline void fail_argument(const char* call, const char* argument, const std::string& value,
                                       const std::string& allowed) {
  raise<InvalidArgument>(std::string("moe_balance: ") + call + ": " + argument + " is " + value + "; allowed: " + allowed);
}

MOEB_NAMESPACE_END

/// Checks a precondition; its text arguments are built only when it fails.
#define MOEB_EXPECTS(condition, call, argument, value, allowed)                     \
  do {                                                                              \
    if (!(condition)) ::moe_balance::fail_argument(call, argument, value, allowed); \
  } while (false)
