// A second file of the same program that compiles a router of its own, as header-only users do.
#include "router.hpp"

Routed routed_in_other_file() {
  return routed_by(Published{});
}
