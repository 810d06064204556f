#include <moe_balance/moe_balance.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace mb = moe_balance;

int main() {
  const mb::Router router{mb::Softmax{}, mb::TopK<2>{}};
  const std::vector<float> logits{0.0f, 1.0f, 2.0f, 3.0f};
  std::vector<float> weights(2);
  std::vector<std::int32_t> experts(2);
  std::vector<std::byte> scratch(router.workspace_bytes({.tokens = 1, .experts = 4}));
  router.route({.logits = mb::MatrixView(logits.data(), 1, 4),
                .experts = mb::MatrixView(experts.data(), 1, 2),
                .weights = mb::MatrixView(weights.data(), 1, 2)},
               {scratch.data(), scratch.size()}, mb::Host{.threads = 1});
  std::printf("moe_balance %d.%d.%d: experts %d %d\n", MOEB_VERSION_MAJOR, MOEB_VERSION_MINOR, MOEB_VERSION_PATCH,
              experts[0], experts[1]);
  return experts[0] == 3 && experts[1] == 2 ? 0 : 1;
}
