// The main kernels of usual calls (engine/usual_call.hpp), for instructions.py, which counts what one token takes. float32 logits are the common case
// that it counts: code for other types is there, too, because a usual call decides that at run time.
#include <moe_balance/moe_balance.cuh>

namespace mb = moe_balance;

/// Taking a kernel's address is what has it compiled.
template <class Scoring, class Selection, class Balancer, int... Tier>
bool kernels_of() {
  using Forward = mb::ForwardProblem<Scoring, Selection, Balancer>;
  using Backward = mb::BackwardProblem<Scoring, Selection, Balancer>;
  return ((mb::moe_balance_forward<Tier, true, Forward> != nullptr &&
           mb::moe_balance_backward<Tier, true, Backward> != nullptr) &&
          ...);
}

bool kernels_exist();
bool kernels_exist() {
  using DeepSeekSelection = mb::GroupLimitedTopK<8>;
  return kernels_of<mb::Softmax, mb::TopK<8>, mb::AuxLoss, 1, 2, 3, 4>() &&
         kernels_of<mb::Sigmoid, DeepSeekSelection, mb::LossFreeBias, 3>();
}
