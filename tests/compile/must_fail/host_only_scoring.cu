// EXPECT: calling a __host__ function from a __host__ __device__ function is not[ \n]+allowed.*scoring\(logit\)
#include <moe_balance/moe_balance.cuh>

namespace mb = moe_balance;

// Satisfies the concept, which cannot see where a function may run.
struct Wrong {
  float operator()(float logit) const { return logit; }
  float derivative(float, float) const { return 1.0f; }
};

void route(const mb::RouteArgs& arguments, mb::Workspace workspace, cudaStream_t stream) {
  const mb::Router router{Wrong{}, mb::TopK<2>{}};
  router.route(arguments, workspace, stream);
}
