// EXPECT: is_trivially_copyable
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong : mb::Sigmoid {
  Wrong() = default;
  Wrong(const Wrong&) {}
};

const mb::Router router{Wrong{}, mb::TopK<2>{}};
