// How much stack a call needs of its calling thread (Host, views.hpp): calls run on a thread whose stack has been painted, and what is no longer paint counts.
#include "engine_host.hpp"

#include "bodies/everything.hpp"

#include <doctest/doctest.h>

#include <pthread.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

// What sanitizers add to frames, or move elsewhere, and what the optimiser leaves out is no part of it.
#if defined(__SANITIZE_ADDRESS__)
#define MOE_BALANCE_TEST_SANITIZED 1
#elif defined(__has_feature)
#define MOE_BALANCE_TEST_SANITIZED __has_feature(address_sanitizer)
#else
#define MOE_BALANCE_TEST_SANITIZED 0
#endif
#if defined(__OPTIMIZE__) && !MOE_BALANCE_TEST_SANITIZED

namespace {

namespace mb = moe_balance;

constexpr std::size_t promised = std::size_t{336} << 10;
constexpr unsigned char paint = 0xa5;

/// Bytes of stack that `work` used on a thread of its own, with what that thread itself needs.
template <class Work>
std::size_t stack_of(const Work& work) {
  constexpr std::size_t bytes = std::size_t{2} << 20, page = 4096;
  std::vector<unsigned char> memory(bytes + page, paint);
  unsigned char* const stack = memory.data() + page - reinterpret_cast<std::uintptr_t>(memory.data()) % page;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  REQUIRE(pthread_attr_setstack(&attributes, stack, bytes) == 0);
  const auto run = [](void* its_work) -> void* {
    (*static_cast<const Work*>(its_work))();
    return nullptr;
  };
  pthread_t thread;
  REQUIRE(pthread_create(&thread, &attributes, run, const_cast<Work*>(&work)) == 0);
  REQUIRE(pthread_join(thread, nullptr) == 0);
  pthread_attr_destroy(&attributes);
  const unsigned char* const end = stack + bytes;  // stacks grow downwards
  return static_cast<std::size_t>(
      end - std::find_if<const unsigned char*>(stack, end, [](unsigned char c) { return c != paint; }));
}

}  // namespace

TEST_CASE("a call needs no more stack of its calling thread than Host says") {
  constexpr int k = 32;
  const mb::Router router{mb::Softmax{}, mb::GroupLimitedTopK<k>{.groups = 8, .groups_kept = 4},
                          mb::Combine{mb::FromPlainTopK{mb::AuxLoss{}}, mb::FromPlainTopK{mb::SequenceLoss{}},
                                      mb::CommunicationLoss{mb::SequenceLoss{}, 8, 4}, mb::ZLoss{}, mb::LossFreeBias{}}};
  CHECK(stack_of([] {}) < promised / 8);
  std::size_t most = 0;
  for (const int experts : {64, 256, 2048}) {
    for (const mb::DataType type : {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float64}) {
      const testing::Inputs inputs = testing::with_types(testing::full_inputs(1, 64, experts, k), type, type, type);
      for (const mb::InstructionSet instructions :
           {mb::InstructionSet::baseline, mb::InstructionSet::x86_64_v3, mb::InstructionSet::automatic}) {
        const std::size_t used = stack_of(
            [&] { testing::train(testing::HostEngine{.threads = 1, .instructions = instructions}, router, inputs); });
        CAPTURE(experts);
        CAPTURE(static_cast<int>(type));
        CAPTURE(static_cast<int>(instructions));
        CHECK(used <= promised);
        most = std::max(most, used);
      }
    }
  }
  CHECK(most > promised / 2);  // the calls were made on that stack
}
#endif
