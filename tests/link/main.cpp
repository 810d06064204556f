// Two files and two shared objects that all include the library make one program, and all route alike. With exceptions an error handler sees the message
// that the exception has.
#include "router.hpp"

#include <cstdio>
#include <string>

namespace {

std::string last_message;

void remember(const char* message) {
  last_message = message;
}

bool handler_sees_what_is_thrown() {
  if (mb::set_error_handler(remember) != nullptr) return false;
  try {
    mb::CompiledRouter{Inference{}}.route({}, {}, mb::Host{});
  } catch (const mb::InvalidArgument& error) {
    return mb::set_error_handler(nullptr) == remember && !last_message.empty() && last_message == error.what();
  }
  return false;
}

/// Its symbols are hidden, the type of the exception among them.
bool exception_crosses_a_shared_object() {
  try {
    fails_in_other_shared_object();
  } catch (const mb::InvalidArgument&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  const Routed here = routed_by(mb::CompiledRouter<Published>{});
  const bool alike =
      here == routed_in_other_file() && here == routed_in_shared_object() && here == routed_in_other_shared_object();
  const Routed inferred = routed_by(mb::CompiledRouter{Inference{}});
  const bool handled = handler_sees_what_is_thrown() && exception_crosses_a_shared_object();
  std::printf("%s, %s; token 0 goes to expert %d, token 0 of the second router to %d\n", alike ? "alike" : "NOT ALIKE",
              handled ? "handled" : "NOT HANDLED", here.experts[0], inferred.experts[0]);
  return alike && handled && inferred.experts[0] == here.experts[0] ? 0 : 1;
}
