// Only has to compile and link: the machine may have no GPU.
#include <moe_balance/moe_balance.hpp>
#include <moe_balance/sync/nccl.hpp>

namespace mb = moe_balance;

int ranks_of(ncclComm_t communicator) {
  const mb::NcclSync sync{communicator};
  const mb::Router router{mb::Sigmoid{}, mb::TopK<2>{}, mb::LossFreeBias{}, sync};
  return router.sync.ranks();
}
