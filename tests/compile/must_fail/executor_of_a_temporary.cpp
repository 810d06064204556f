// EXPECT: use of deleted function.*executor_of|call to deleted function 'executor_of'
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Executor ends_at_once = mb::executor_of([](int parts, const auto& part) {
  for (int i = 0; i < parts; ++i) part(i);
});
