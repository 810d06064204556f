// Every call of a CompiledRouter, none of which may be compiled here: link_test reads this file's symbols.
#include "router.hpp"

void every_call(const mb::CompiledRouter<Published>& router, const mb::CompiledRouter<Inference>& inference,
                const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, const mb::LossArgs& loss, mb::BiasRef bias,
                mb::LoadRef load);

void every_call(const mb::CompiledRouter<Published>& router, const mb::CompiledRouter<Inference>& inference,
                const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, const mb::LossArgs& loss, mb::BiasRef bias,
                mb::LoadRef load) {
  const mb::Host host;
  inference.route({}, {}, host);
  router.forward(forward, {}, host);
  router.backward(backward, {}, host);
  router.loss(loss, {}, host);
  router.update(bias, load, {}, host);
  router.start_update(load, {}, host);
  router.finish_update(bias, load, {}, host);
}
