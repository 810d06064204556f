// compare_dispatch.hpp on the CPU. Built with plain -O2, as users would.
#include "compare_library.hpp"

namespace {

moe_balance::Host place_of(const compare::Call& call) {
  return {.threads = static_cast<int>(call.place)};
}

}  // namespace

#include "compare_dispatch.hpp"
