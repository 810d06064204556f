// Two files and a shared object that all include the library make one program, and all route alike.
#include "router.hpp"

#include <cstdio>

int main() {
  const Routed here = routed_by(mb::CompiledRouter<Published>{});
  const bool alike = here == routed_in_other_file() && here == routed_in_shared_object();
  const Routed inferred = routed_by(mb::CompiledRouter{Inference{}});
  std::printf("%s; token 0 goes to expert %d, token 0 of the second router to %d\n", alike ? "alike" : "NOT ALIKE",
              here.experts[0], inferred.experts[0]);
  return alike && inferred.experts[0] >= 0 ? 0 : 1;
}
