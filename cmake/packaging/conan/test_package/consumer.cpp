#include <moe_balance/moe_balance.hpp>

#include <cstdint>
#include <vector>

namespace mb = moe_balance;

int main() {
  const std::vector<float> logits{0.0f, 1.0f, 2.0f, 3.0f};
  std::vector<float> weight(1);
  std::vector<std::int32_t> expert(1);
  mb::presets::Switch<>{}.route({.logits = mb::MatrixView(logits.data(), 1, 4),
                                 .experts = mb::MatrixView(expert.data(), 1, 1),
                                 .weights = mb::MatrixView(weight.data(), 1, 1)},
                                {}, mb::Host{.threads = 1});
  return expert[0] == 3 ? 0 : 1;
}
