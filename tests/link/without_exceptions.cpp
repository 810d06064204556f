// A program compiled with -fno-exceptions. `without_exceptions handler`: errors go to the program's handler, which gets the whole message before
// anything is written, and ends the program in its own way. `without_exceptions returns`: a handler that returns is followed by abort.
// `without_exceptions default`: the message on stderr, then abort.
#include <moe_balance/moe_balance.hpp>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace mb = moe_balance;

namespace {

constexpr const char* expected = "moe_balance: route: experts.data is null; allowed: a pointer to the caller's memory";

float logits[4] = {0, 1, 2, 3};
float weights[2] = {-1, -1};

void end_program(const char* message) {
  const bool whole = std::strcmp(message, expected) == 0;
  std::_Exit(whole && weights[0] == -1.0f ? 0 : 5);
}

void log_and_return(const char* message) {
  std::fprintf(stderr, "logged: %s\n", message);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  if (std::strcmp(argv[1], "handler") == 0 && mb::set_error_handler(end_program) != mb::print_error) return 3;
  if (std::strcmp(argv[1], "returns") == 0) mb::set_error_handler(log_and_return);
  const mb::Router router{mb::Softmax{}, mb::TopK<2>{}};
  router.route(
      {.logits = mb::MatrixView(logits, 1, 4), .experts = {nullptr, 1, 2}, .weights = mb::MatrixView(weights, 1, 2)}, {},
      mb::Host{.threads = 1});
  return std::strcmp(argv[1], "handler") == 0 ? 4 : 0;  // never: the other two abort, and 0 is then what their tests refuse
}
