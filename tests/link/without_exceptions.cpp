// A program compiled with -fno-exceptions. `without_exceptions handler`: errors go to the program's handler, which gets the whole message and may
// leave by longjmp; nothing has been written by then. `without_exceptions default`: the message on stderr, then abort.
#include <moe_balance/moe_balance.hpp>

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>

namespace mb = moe_balance;

namespace {

std::jmp_buf after_error;
char last_message[512];

void keep_message(const char* message) {
  std::strncpy(last_message, message, sizeof last_message - 1);
  std::longjmp(after_error, 1);
}

// At file scope, because longjmp leaves the function that would own them.
float logits[4] = {0, 1, 2, 3};
float weights[2] = {-1, -1};
std::int32_t experts[2] = {-7, -7};

void route_with_missing_experts() {
  const mb::Router router{mb::Softmax{}, mb::TopK<2>{}};
  router.route(
      {.logits = mb::MatrixView(logits, 1, 4), .experts = {nullptr, 1, 2}, .weights = mb::MatrixView(weights, 1, 2)}, {},
      mb::Host{.threads = 1});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  if (std::strcmp(argv[1], "default") == 0) {
    route_with_missing_experts();
    return 0;  // never: it aborts
  }
  const mb::ErrorHandler before = mb::set_error_handler(keep_message);
  if (before != mb::print_error) return 3;
  if (setjmp(after_error) == 0) {
    route_with_missing_experts();
    return 4;
  }
  std::printf("%s\n", last_message);
  const bool whole =
      std::strcmp(last_message, "moe_balance: route: experts.data is null; allowed: a pointer to the caller's memory") == 0;
  return whole && weights[0] == -1.0f && experts[0] == -7 ? 0 : 5;
}
