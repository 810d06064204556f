// CONTRACT.md lines 13 and 15 on the CPU, and the owning buffers for state.
#include "engine_host.hpp"

#include "bodies/contract_running.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_13, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_15, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_15_again, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_15_route, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_15_twice, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(route_is_forward, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(replay_ids, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(row_strides, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(many_layers, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(different_layers, HostEngine);

TEST_CASE("Bias, Load and Saved own zeroed memory of the size that their refs say") {
  const mb::Bias bias{60, 3};
  const mb::Load load{60, 3};
  CHECK(bias.ref().experts == 60);
  CHECK(bias.ref().layers == 3);
  CHECK(load.ref().layers == 3);
  CHECK(load.ref().stride == 60);
  for (int i = 0; i < 180; ++i) {
    CHECK(bias.data()[i] == 0.0f);
    CHECK(load.data()[i] == 0);
  }
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, everything()};
  const mb::Shape shape{.tokens = 10, .experts = 60, .sequences = 5};
  const mb::Saved saved{router, shape};
  CHECK(saved.ref().bytes == router.saved_bytes(shape));
  CHECK(reinterpret_cast<std::uintptr_t>(saved.ref().data) % 8 == 0);
  CHECK(mb::Router{mb::Sigmoid{}, mb::TopK<4>{}}.saved_bytes(shape) == 0);
  CHECK(std::is_trivially_copyable_v<decltype(router)>);
}

}  // namespace testing
