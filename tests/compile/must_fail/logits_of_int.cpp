// EXPECT: elements are float, double .on the CPU., mb::bfloat16, mb::float16
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

void route(const mb::MatrixView<const int>& logits, mb::RouteArgs& args);
void route(const mb::MatrixView<const int>& logits, mb::RouteArgs& args) {
  args.logits = logits;
}
