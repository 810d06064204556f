// Something that the person at the keyboard can mend. main() prints it as one line and exits with its code.
#pragma once

#include <stdexcept>
#include <string>

namespace train_moe {

class UserError : public std::runtime_error {
 public:
  explicit UserError(const std::string& message, int exit_code = 1) : std::runtime_error(message), code_(exit_code) {}
  [[nodiscard]] int exit_code() const { return code_; }

 private:
  int code_;
};

/// A bad option on the command line (exit code 2, as shells do).
class UsageError : public UserError {
 public:
  explicit UsageError(const std::string& message) : UserError(message + " (--help lists the options)", 2) {}
};

}  // namespace train_moe
