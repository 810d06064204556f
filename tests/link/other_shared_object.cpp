// The same router in a second shared object, which is compiled for newer processors and with another optimisation, and exports its two functions
// only.
// A selection of its own makes it a type that no other file has.
#include "router.hpp"

namespace {

/// As TopK<2>, under another name.
struct OwnTopK : mb::TopK<2> {};

}  // namespace

Routed routed_in_other_shared_object() {
  return routed_by(mb::Router{mb::Softmax{}, OwnTopK{}});
}

void fails_in_other_shared_object() {
  mb::Router{mb::Softmax{}, OwnTopK{}}.route({}, {}, mb::Host{});
}
