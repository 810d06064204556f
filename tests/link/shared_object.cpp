// The same router once more, in a shared object.
#include "router.hpp"

Routed routed_in_shared_object() {
  return routed_by(Published{});
}
