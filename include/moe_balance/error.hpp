// Errors: one exception type per cause, each message naming the argument, its value and what is allowed.
#pragma once

#include <moe_balance/config.hpp>

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

/// Raises `Error`; in a program compiled with -fno-exceptions prints the message to stderr and aborts.
template <class Error>
[[noreturn]] void raise(const std::string& message) {
#if defined(__cpp_exceptions)
  throw Error(message);
#else
  std::fprintf(stderr, "%s\n", message.c_str());
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
