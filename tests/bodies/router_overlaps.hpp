// Router's calls refuse memory that an output shares with anything else, and take what is legal: rows between rows, a gradient in the logits' place, replayed
// ids that are written where they lie.
#pragma once

#include "everything.hpp"
#include "overlaps.hpp"

#include <bit>
#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace testing {

/// Memory of one problem for refuses_overlaps. `Call` says which of its calls.
template <class Engine, class Router, class Call>
struct OverlapMemory {
  Router router;
  Call call;
  Engine engine;
  Memory<Engine> memory;

  OverlapMemory(const Router& its_router, const Call& its_call, const Inputs& inputs)
      : router(its_router), call(its_call), memory(memory_for(engine, router, inputs)) {}

  auto args() { return call.args(memory); }
  template <class Args>
  void run(const Args& args) {
    call.run(router, args, memory.workspace(), engine.place());
  }
  auto contents() {
    const Outcome o = memory.outcome();
    return std::tuple(o.experts, o.weights_bytes, o.counts, o.load, o.bias, o.grad_bytes, o.loss, o.parts, o.saved);
  }
};

struct ForwardCall {
  template <class MemoryT>
  auto args(MemoryT& memory) const {
    return memory.forward_args();
  }
  template <class Router, class Place>
  void run(const Router& router, const mb::ForwardArgs& args, mb::Workspace workspace, const Place& place) const {
    router.forward(args, workspace, place);
  }
};
struct BackwardCall {
  template <class MemoryT>
  auto args(MemoryT& memory) const {
    return memory.backward_args();
  }
  template <class Router, class Place>
  void run(const Router& router, const mb::BackwardArgs& args, mb::Workspace workspace, const Place& place) const {
    router.backward(args, workspace, place);
  }
};
struct LossCall {
  template <class MemoryT>
  auto args(MemoryT& memory) const {
    return memory.loss_args();
  }
  template <class Router, class Place>
  void run(const Router& router, const mb::LossArgs& args, mb::Workspace workspace, const Place& place) const {
    router.loss(args, workspace, place);
  }
};

/// An argument that is a member's member.
template <class Args, class Owner, class Member>
Argument<Args> argument_of(const std::string& name, bool written, Owner Args::*owner, Member Owner::*member) {
  const auto inner = argument(name, written, member);
  return {name, written, [=](Args& args) { return inner.data(args.*owner); },
          [=](Args& args, void* to) { inner.move(args.*owner, to); }};
}

/// One sequence by offsets, replayed ids, and every other optional argument.
inline Inputs overlap_inputs() {
  Inputs inputs = full_inputs(95, 6, 16, 4);
  inputs.layout = mb::Sequences::Layout::offsets;
  inputs.offsets = {0, 6};
  inputs.tokens_on_device = 6;
  inputs.grad_loss = 1.0f;
  inputs.active.assign(6, 1);
  inputs.balanced.assign(6, 1);
  inputs.replay_experts = replayed_ids(96, 6, 16, 4);
  inputs.replay_tokens.assign(6, 1);
  return inputs;
}

inline auto overlap_router() {
  return mb::Router{mb::Sigmoid{}, mb::Replay{mb::TopK<4>{}}, mb::Combine{everything(), mb::BalancedTokens{}}};
}

template <class Engine, class Call, class Args>
void refuses_router_overlaps(const std::string& name, const Call& call, const std::vector<Argument<Args>>& arguments) {
  const auto router = overlap_router();
  refuses_overlaps(name, arguments, [&] {
    return OverlapMemory<Engine, std::remove_const_t<decltype(router)>, Call>(router, call, overlap_inputs());
  });
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: forward, backward and loss refuse outputs that share memory", Engine,
                          router_overlaps) {
  using Forward = mb::ForwardArgs;
  refuses_router_overlaps<Engine>(
      "forward", ForwardCall{},
      std::vector{writes("experts", &Forward::experts), writes("weights", &Forward::weights),
                  writes("counts", &Forward::counts), argument_of("load", true, &Forward::load, &mb::LoadRef::counts),
                  writes("saved", &Forward::saved), writes("status", &Forward::status), reads("logits", &Forward::logits),
                  reads("bias", &Forward::bias), reads("active", &Forward::active), reads("balanced", &Forward::balanced),
                  argument_of("replay.tokens", false, &Forward::replay, &mb::ReplayRef::tokens),
                  reads("tokens_on_device", &Forward::tokens_on_device)});
  using Backward = mb::BackwardArgs;
  refuses_router_overlaps<Engine>(
      "backward", BackwardCall{},
      std::vector{writes("grad_logits", &Backward::grad_logits), reads("experts", &Backward::experts),
                  reads("grad_weights", &Backward::grad_weights), reads("saved", &Backward::saved),
                  reads("active", &Backward::active), reads("balanced", &Backward::balanced),
                  reads("tokens_on_device", &Backward::tokens_on_device), reads("grad_loss", &Backward::grad_loss)});
  using Loss = mb::LossArgs;
  refuses_router_overlaps<Engine>(
      "loss", LossCall{},
      std::vector{writes("value", &Loss::value), writes("part_values", &Loss::part_values), reads("saved", &Loss::saved)});
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: an output that shares some bytes of another argument is refused", Engine,
                          router_overlaps_in_part) {
  const Engine engine;
  const auto router = overlap_router();
  const auto refuses = [&](const std::string& call, const std::string& one, const std::string& other, const auto& run) {
    CAPTURE(one);
    CAPTURE(other);
    Memory<Engine> memory = memory_for(engine, router, overlap_inputs());
    CHECK_THROWS_WITH_AS(
        run(memory),
        ("moe_balance: " + call + ": " + one + " is memory that " + other + " shares; allowed: memory of its own").c_str(),
        mb::InvalidArgument);
  };
  const auto forward = [&](const auto& spoil) {
    return [&, spoil](Memory<Engine>& memory) {
      mb::ForwardArgs args = memory.forward_args();
      spoil(args);
      router.forward(args, memory.workspace(), engine.place());
    };
  };
  const auto backward = [&](const auto& spoil) {
    return [&, spoil](Memory<Engine>& memory) {
      mb::BackwardArgs args = memory.backward_args();
      spoil(args);
      router.backward(args, memory.workspace(), engine.place());
    };
  };
  std::vector<std::int64_t> words(256);
  words[1] = 6;
  typename Engine::template Array<std::int64_t> room(engine, words);  // what reaches beyond an argument's end is in here
  for (const int distance : {1, -15}) {
    refuses("forward", "counts", "load", forward([&](auto& args) {
              args.load.counts = room.data() + 64;
              args.counts = args.load.counts + distance;
            }));
  }
  refuses("forward", "counts", "sequences.offsets", forward([&](auto& args) {
            args.sequences.offsets = room.data();
            args.counts = room.data();
          }));
  refuses("backward", "grad_logits", "sequences.offsets", backward([&](auto& args) {
            args.sequences.offsets = room.data();
            args.grad_logits.data = room.data();
          }));
  refuses("forward", "experts", "weights", forward([&](auto& args) {
            args.experts = {reinterpret_cast<std::int32_t*>(room.data()), 6, 4, 8};
            args.weights = mb::MatrixView<float>(reinterpret_cast<float*>(room.data()) + 3, 6, 4, 8);
          }));
  refuses("forward", "experts", "replay.experts", forward([&](auto& args) {
            args.experts = {reinterpret_cast<std::int32_t*>(room.data()), 6, 4, 8};
            args.replay.experts = {args.experts.data, 6, 4};
          }));
  refuses("backward", "grad_logits", "logits", backward([&](auto& args) {
            args.logits.data = room.data();
            args.grad_logits.data = reinterpret_cast<float*>(room.data()) + 4;
          }));
  refuses("backward", "grad_logits", "logits", backward([&](auto& args) {
            args.logits.data = room.data();
            args.grad_logits.data = room.data();
            args.grad_logits.stride = 17;
          }));
  refuses("backward", "grad_logits", "logits", backward([](auto& args) {
            args.grad_logits.data = const_cast<void*>(args.logits.data);
            args.logits.type = mb::DataType::bfloat16;
            args.grad_weights = {};
          }));
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: arguments may be columns of one table", Engine, router_interleaved) {
  const Engine engine;
  constexpr int tokens = 40;
  constexpr int experts = 16;
  constexpr int k = 4;
  const auto router = mb::Router{mb::Softmax{}, mb::TopK<k>{}, mb::LossFreeBias{}};
  Inputs inputs = normal_inputs(97, tokens, experts, k);
  inputs.bias = normal_bias(98, experts);
  inputs.load = zero_load(experts);
  Memory<Engine> apart = memory_for(engine, router, inputs);
  router.forward(apart.forward_args(), apart.workspace(), engine.place());
  const Outcome expected = apart.outcome();

  // A row: logits, experts, weights, and room for an argument of one row.
  constexpr int row = experts + k + k + 2 * experts;
  std::vector<float> table(tokens * row, 0.0f);
  for (int t = 0; t < tokens; ++t) {
    for (int e = 0; e < experts; ++e) {
      table[static_cast<std::size_t>(t * row + e)] =
          static_cast<float>(inputs.logits[static_cast<std::size_t>(t * experts + e)]);
    }
  }
  typename Engine::template Array<float> memory(engine, table);
  float* const data = memory.data();
  mb::ForwardArgs args = apart.forward_args();
  args.logits = mb::MatrixView<const float>(data, tokens, experts, row);
  args.experts = {reinterpret_cast<std::int32_t*>(data + experts), tokens, k, row};
  args.weights = mb::MatrixView<float>(data + experts + k, tokens, k, row);
  args.counts = reinterpret_cast<std::int64_t*>(data + 3 * row + experts + 2 * k);
  CHECK_NOTHROW(router.forward(args, apart.workspace(), engine.place()));
  engine.wait();
  const std::vector<float> after = memory.values();
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t i = 0; i < k; ++i) {
      CHECK(std::bit_cast<std::int32_t>(after[t * row + experts + i]) == expected.experts[t * k + i]);
      CHECK(static_cast<double>(after[t * row + experts + k + i]) == expected.weights[t * k + i]);
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("the gradient may take the logits' place, and replayed ids may be written where they lie", Engine,
                          router_in_place) {
  const Engine engine;
  const auto check = [&](const auto& router, int experts, mb::DataType type) {
    CAPTURE(experts);
    Inputs inputs = normal_inputs(99, 100, experts, 4);
    inputs.logits_type = inputs.grad_type = type;
    inputs.weights_type = type;
    inputs.replay_experts = replayed_ids(100, 100, experts, 4);
    Memory<Engine> apart = memory_for(engine, router, inputs);
    router.forward(apart.forward_args(), apart.workspace(), engine.place());
    router.backward(apart.backward_args(), apart.workspace(), engine.place());
    const Outcome expected = apart.outcome();

    Memory<Engine> memory = memory_for(engine, router, inputs);
    typename Engine::template Array<std::int32_t> ids(engine, inputs.replay_experts);
    mb::ForwardArgs forward = memory.forward_args();
    forward.experts.data = ids.data();
    forward.replay.experts = forward.experts;
    CHECK_NOTHROW(router.forward(forward, memory.workspace(), engine.place()));
    typename Engine::template Array<std::uint8_t> logits(engine, encoded(type, inputs.logits));
    mb::BackwardArgs backward = memory.backward_args();
    backward.experts = forward.experts;
    backward.logits.data = logits.data();
    backward.grad_logits.data = logits.data();
    CHECK_NOTHROW(router.backward(backward, memory.workspace(), engine.place()));
    engine.wait();
    CHECK(ids.values() == expected.experts);
    CHECK(logits.values() == expected.grad_bytes);
  };
  for (const int experts : {16, 64, 300}) {
    for (const mb::DataType type : {mb::DataType::float32, mb::DataType::bfloat16}) {
      check(mb::Router{mb::Softmax{}, mb::Replay{mb::TopK<4>{}}, mb::AuxLoss{.coefficient = 1.0f}}, experts, type);
      check(mb::Router{mb::SoftmaxOverSelected{}, mb::Replay{mb::TopK<4>{}}}, experts, type);
      check(mb::Router{mb::Sigmoid{}, mb::Replay{mb::TopK<4>{}}}, experts, type);
    }
  }
}

}  // namespace testing
