// The fused calls refuse memory that their two halves share, whichever half reads or writes it, before anything is written.
#pragma once

#include "everything.hpp"

#include <doctest/doctest.h>
#include <moe_balance/moe_balance.hpp>

#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

namespace testing {

/// Areas of memory by argument, for a fused call over three tokens, eight experts and K = 4; one argument may be laid over another's area.
template <class Engine>
class FusedMemory {
 public:
  explicit FusedMemory(const std::string& moved = {}, const std::string& onto = {}) : moved_(moved), onto_(onto) {}

  /// `has_capacity`: whether there are counts of what was chosen beside those of what is kept. `marks_tokens`: whether balanced tokens are marked.
  [[nodiscard]] mb::ForwardArgs routing(bool has_capacity = false, bool marks_tokens = false) {
    mb::ForwardArgs args;
    if (has_capacity) args.counts = at<std::int64_t>("args.counts");
    args.logits = mb::MatrixView<const float>(at<float>("logits"), tokens, experts);
    args.experts = {at<std::int32_t>("experts"), tokens, k};
    args.weights = mb::MatrixView<float>(at<float>("weights"), tokens, k);
    args.bias = {at<float>("bias"), experts};
    args.load = {at<std::int64_t>("load"), experts};
    args.saved = {at<std::byte>("saved"), sizeof(std::int64_t) * area_words};
    args.active = at<std::uint8_t>("active");
    args.sequences = {
        .count = 1, .layout = mb::Sequences::Layout::offsets, .offsets = at<std::int64_t>("sequences.offsets")};
    args.replay = {.experts = {at<std::int32_t>("replay.experts"), tokens, k}, .tokens = at<std::uint8_t>("replay.tokens")};
    args.status = at<mb::Status>("status");
    args.tokens_on_device = at<std::int64_t>("tokens_on_device");
    args.chosen = {at<std::int32_t>("chosen"), tokens, k};
    args.kept_counts = at<std::int64_t>("kept_counts");
    if (marks_tokens) args.balanced = at<std::uint8_t>("balanced");
    return args;
  }
  [[nodiscard]] mb::PermutationArgs order() {
    return {.experts = {},
            .offsets = {at<std::int64_t>("offsets"), experts + 1},
            .row_of_slot = {at<std::int64_t>("row_of_slot"), tokens, k},
            .slot_of_row = {at<std::int64_t>("slot_of_row"), tokens * k},
            .counts = at<std::int64_t>("counts"),
            .block_size = 1,
            .expert_of_block = {at<std::int32_t>("expert_of_block"), tokens * k},
            .status = at<mb::Status>("status of order")};
  }
  template <class Router>
  [[nodiscard]] mb::Workspace workspace(const Router& router) {
    const std::size_t bytes = mb::route_and_permute_workspace_bytes(router, {tokens, experts});
    REQUIRE(bytes <= sizeof(std::int64_t) * area_words);
    return {at<std::byte>("workspace"), bytes};
  }
  [[nodiscard]] auto place() const { return engine_.place(); }
  [[nodiscard]] std::map<std::string, std::vector<std::int64_t>> contents() const {
    engine_.wait();
    std::map<std::string, std::vector<std::int64_t>> all;
    for (const auto& [name, area] : areas_) all.emplace(name, area.values());
    return all;
  }

 private:
  static constexpr std::int64_t tokens = 3;
  static constexpr std::int64_t k = 4;
  static constexpr int experts = 8;
  static constexpr std::size_t area_words = 1024;
  using Area = typename Engine::template Array<std::int64_t>;

  template <class T>
  [[nodiscard]] T* at(const std::string& name) {
    const std::string& where = name == moved_ ? onto_ : name;
    if (areas_.count(where) == 0) {
      std::vector<std::int64_t> words(area_words, 0);
      words[1] = tokens;  // of sequences.offsets
      areas_.emplace(where, Area(engine_, words));
    }
    return reinterpret_cast<T*>(areas_.at(where).data());
  }

  Engine engine_;
  std::string moved_;
  std::string onto_;
  std::map<std::string, Area> areas_;
};

/// Whatever the permutation writes, and the workspace, is refused over each of `views`, by its name.
template <class Engine, class Router, class Call>
void refuses_shared_memory(const std::string& subject, const Router& router, std::initializer_list<const char*> views,
                           const Call& call) {
  for (const char* written :
       {"offsets", "row_of_slot", "slot_of_row", "expert_of_block", "counts", "status of order", "workspace"}) {
    const std::string name = std::string(written) == "status of order" ? "status" : written;
    for (const char* view : views) {
      CAPTURE(written);
      CAPTURE(view);
      FusedMemory<Engine> memory(written, view);
      const mb::ForwardArgs routing =
          memory.routing(mb::looks_across_tokens<decltype(router.top_k)>, Router::Traits::marks_tokens);
      const mb::PermutationArgs order = memory.order();
      const mb::Workspace workspace = memory.workspace(router);
      if (name == "status" && order.status == routing.status) continue;  // one for both is what callers have
      const auto before = memory.contents();
      CHECK_THROWS_WITH_AS(
          call(routing, order, workspace, memory.place()),
          (subject + ": " + name + " is memory that " + view + " shares; allowed: memory of its own").c_str(),
          mb::InvalidArgument);
      CHECK(memory.contents() == before);
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("route_and_permute refuses memory that routing shares with the permutation", Engine,
                          route_and_permute_overlaps) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}};
  const auto call_of = [](const auto& its_router) {
    return [&](const mb::ForwardArgs& args, const mb::PermutationArgs& order, const mb::Workspace& workspace,
               const auto& place) {
      constexpr bool has_capacity = mb::looks_across_tokens<decltype(its_router.top_k)>;
      mb::route_and_permute(its_router,
                            {.logits = args.logits,
                             .experts = args.experts,
                             .weights = args.weights,
                             .counts = args.counts,
                             .bias = args.bias,
                             .active = args.active,
                             .status = args.status,
                             .tokens_on_device = args.tokens_on_device,
                             .kept_counts = has_capacity ? args.kept_counts : nullptr},
                            order, workspace, place);
    };
  };
  const auto call = call_of(router);
  refuses_shared_memory<Engine>("moe_balance: route_and_permute", router,
                                {"logits", "weights", "bias", "active", "status", "tokens_on_device"}, call);
  const mb::Router with_capacity{mb::Sigmoid{}, mb::WithCapacity<mb::TopK<4>>{}};
  refuses_shared_memory<Engine>("moe_balance: route_and_permute", with_capacity, {"args.counts", "kept_counts"},
                                call_of(with_capacity));

  FusedMemory<Engine> memory;
  mb::PermutationArgs order = memory.order();
  order.status = memory.routing().status;
  CHECK_NOTHROW(call(memory.routing(), order, memory.workspace(router), memory.place()));
  FusedMemory<Engine> inside("offsets", "status of order");
  CHECK_THROWS_WITH_AS(call(inside.routing(), inside.order(), inside.workspace(router), inside.place()),
                       doctest::Contains("permutation: offsets is memory that status shares"), mb::InvalidArgument);
}

TEST_CASE_TEMPLATE_DEFINE("forward_and_permute refuses memory that forward shares with the permutation", Engine,
                          forward_and_permute_overlaps) {
  const auto refuses = [](const auto& router, std::initializer_list<const char*> views) {
    refuses_shared_memory<Engine>(
        "moe_balance: forward_and_permute", router, views,
        [&](const mb::ForwardArgs& args, const mb::PermutationArgs& order, const mb::Workspace& workspace,
            const auto& place) { mb::forward_and_permute(router, args, order, workspace, place); });
  };
  refuses(mb::Router{mb::Sigmoid{}, mb::TopK<4>{}, everything()},
          {"logits", "weights", "bias", "load", "saved", "active", "sequences.offsets", "status", "tokens_on_device"});
  refuses(mb::Router{mb::Softmax{}, mb::Replay{mb::TopK<4>{}},
                     mb::Combine{mb::FromPlainTopK{mb::GlobalBatchLoss{.coefficient = 0.5f}}, mb::BalancedTokens{}}},
          {"replay.experts", "replay.tokens", "balanced"});
  refuses(mb::Router{mb::Softmax{}, mb::WithCapacity<mb::TopK<4>>{.capacity_factor = 0.8}, mb::AuxLoss{.coefficient = 0.3f}},
          {"chosen", "args.counts", "kept_counts", "weights"});
}

}  // namespace testing
