// Only has to compile and link: running it is the business of mpirun.
#include <moe_balance/moe_balance.hpp>
#include <moe_balance/sync/mpi.hpp>

namespace mb = moe_balance;

void update_over_ranks(MPI_Comm communicator, mb::BiasRef bias, mb::LoadRef load) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<2>{}, mb::LossFreeBias{}, mb::MpiSync{communicator}};
  router.update(bias, load, {}, mb::Host{});
}
