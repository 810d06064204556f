// The fibers themselves: what they check, and what they do to order and memory. fiber_faults_test breaks the real kernels' bodies.
#include "tile/fiber_engine.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <set>
#include <stdexcept>
#include <vector>

namespace testing {

namespace {

constexpr int threads = 64;

/// A sum over `values` by the rules: zero the total, barrier, add, barrier, read.
struct SumKernel {
  bool barrier_after_zero = true;
  bool barrier_before_read = true;
  std::int64_t last_block_misses = 0;

  void operator()(const FiberBlock& block, const std::vector<std::int64_t>& values, std::int64_t* result) const {
    auto* total = reinterpret_cast<std::int64_t*>(block.shared());
    if (block.thread() == 0) *total = 0;
    if (barrier_after_zero) block.barrier();
    const std::int64_t step = block.blocks() * block.threads();
    const auto size = static_cast<std::int64_t>(values.size()) - last_block_misses;
    for (std::int64_t i = block.index() * block.threads() + block.thread(); i < size; i += step) {
      block.add_shared(total, values[static_cast<std::size_t>(i)]);
    }
    if (barrier_before_read) block.barrier();
    if (block.thread() == 0) block.add_global(result, *total);
  }
};

std::int64_t run(const SumKernel& kernel, std::uint64_t seed) {
  std::vector<std::int64_t> values(1000);
  std::iota(values.begin(), values.end(), 1);
  std::int64_t result = 0;
  launch_fibers(Fibers{seed}, 3, 1, threads, sizeof(std::int64_t),
                [&](const FiberBlock& block) { kernel(block, values, &result); });
  return result;
}

constexpr std::int64_t correct = 1000 * 1001 / 2;

/// Whether some order of lanes shows that the kernel is wrong.
bool is_caught(const SumKernel& kernel) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    if (run(kernel, seed) != correct) return true;
  }
  return false;
}

}  // namespace

TEST_CASE("a correct kernel body gives the same result in every order of lanes and blocks") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) CHECK(run(SumKernel{}, seed) == correct);
}

TEST_CASE("a missing barrier is caught") {
  CHECK(is_caught(SumKernel{.barrier_after_zero = false}));
  CHECK(is_caught(SumKernel{.barrier_before_read = false}));
}

TEST_CASE("an off-by-one in a grid loop is caught") {
  CHECK(is_caught(SumKernel{.last_block_misses = 1}));
}

TEST_CASE("shared memory starts poisoned") {
  std::int64_t seen = 0;
  launch_fibers(Fibers{}, 1, 1, 1, sizeof(std::int64_t),
                [&](const FiberBlock& block) { seen = *reinterpret_cast<std::int64_t*>(block.shared()); });
  CHECK(seen == static_cast<std::int64_t>(0xffffffffffffffffu));
}

TEST_CASE("a barrier that not all threads reach is an error, not a hang") {
  const auto body = [](const FiberBlock& block) {
    if (block.thread() != 3) block.barrier();
  };
  CHECK_THROWS_WITH_AS(launch_fibers(Fibers{}, 1, 1, threads, 0, body), doctest::Contains("not all lanes reach"),
                       FiberError);
}

TEST_CASE("a shuffle of the wrong width is caught") {
  const auto body = [](const FiberBlock& block) {
    const FiberTile<16> narrow{block.group, block.thread()};
    const FiberTile<32> wide{block.group, block.thread()};
    if (block.thread() < 16)
      (void)narrow.shuffle_xor(1.0f, 1);
    else
      (void)wide.shuffle_xor(1.0f, 1);
  };
  CHECK_THROWS_AS(launch_fibers(Fibers{}, 1, 1, 32, 0, body), FiberError);
}

TEST_CASE("a shuffle that leaves its tile is caught") {
  const auto xor_body = [](const FiberBlock& block) {
    (void)FiberTile<8>{block.group, block.thread()}.shuffle_xor(1.0f, 8);
  };
  const auto index_body = [](const FiberBlock& block) { (void)FiberTile<8>{block.group, block.thread()}.shuffle(1.0f, 8); };
  CHECK_THROWS_AS(launch_fibers(Fibers{}, 1, 1, 8, 0, xor_body), FiberError);
  CHECK_THROWS_AS(launch_fibers(Fibers{}, 1, 1, 8, 0, index_body), FiberError);
}

TEST_CASE("lanes of one collective at different call sites are caught") {
  const auto body = [](const FiberBlock& block) {
    const FiberTile<8> tile{block.group, block.thread()};
    if (block.thread() == 2)
      (void)tile.any(true);
    else
      (void)tile.any(false);
  };
  CHECK_THROWS_WITH_AS(launch_fibers(Fibers{}, 1, 1, 8, 0, body), doctest::Contains("different call sites"), FiberError);
}

TEST_CASE("a lane that has left is never read: each collective that waits for it is an error that names it") {
  const auto fails = [](const auto& collective) {
    const auto body = [&](const FiberBlock& block) {
      if (block.thread() == 5) return;
      collective(FiberTile<8>{block.group, block.thread()});
    };
    CHECK_THROWS_WITH_AS(launch_fibers(Fibers{}, 1, 1, 8, 0, body), doctest::Contains("absent threads: 5 (has left)"),
                         FiberError);
  };
  fails([](const FiberTile<8>& tile) { (void)tile.shuffle(1.0f, 5); });
  fails([](const FiberTile<8>& tile) { (void)tile.shuffle(1.0f, 0); });  // whichever lane is read
  fails([](const FiberTile<8>& tile) { (void)tile.shuffle_xor(1.0f, 1); });
  fails([](const FiberTile<8>& tile) { (void)tile.any(true); });
  fails([](const FiberTile<8>& tile) { (void)tile.maximum(1); });
  fails([](const FiberTile<8>& tile) { (void)tile.minimum(1); });
  fails([](const FiberTile<8>& tile) { tile.barrier(); });
}

TEST_CASE("tiles of one block may diverge from each other") {
  std::int64_t total = 0;
  launch_fibers(Fibers{}, 1, 1, threads, 0, [&](const FiberBlock& block) {
    const FiberTile<8> tile{block.group, block.thread()};
    for (int round = 0; round < block.thread() / 8; ++round) block.add_global(&total, tile.shuffle(1, 0));
  });
  CHECK(total == 8 * (0 + 1 + 2 + 3 + 4 + 5 + 6 + 7));
}

namespace {

/// The order in which the threads of two warps pass two points between which they do not meet.
std::vector<int> order_of(std::uint64_t seed) {
  std::vector<int> order;
  FiberGroup group(threads, seed);
  group.run([&](int thread) {
    for (int point = 0; point < 2; ++point) {
      order.push_back(thread);
      (void)FiberTile<8>{&group, thread}.any(true);
    }
  });
  return order;
}

}  // namespace

TEST_CASE("lanes run in an order that the seed alone decides") {
  std::set<std::vector<int>> orders;
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    CHECK(order_of(seed) == order_of(seed));
    orders.insert(order_of(seed));
  }
  CHECK(orders.size() == 10);
}

TEST_CASE("odd seeds let one warp run ahead of the other, even seeds let all advance together") {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    const std::vector<int> order = order_of(seed);
    const bool one_warp_first =
        std::all_of(order.begin(), order.begin() + threads, [&](int thread) { return thread / 32 == order.front() / 32; });
    CHECK(one_warp_first == (seed % 2 == 1));
  }
}

TEST_CASE("what a fiber throws reaches the caller") {
  const auto body = [](const FiberBlock& block) {
    if (block.thread() == 5) throw std::runtime_error("from a fiber");
    block.barrier();
  };
  CHECK_THROWS_WITH_AS(launch_fibers(Fibers{}, 1, 1, threads, 0, body), "from a fiber", std::runtime_error);
}

}  // namespace testing
