// CONTRACT.md line 14 for the dispatch calls: bad input is an InvalidArgument that names the argument, and nothing is written.
#pragma once

#include "../dispatch_run.hpp"
#include "overlaps.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

namespace testing {

/// Arguments of all five calls over one set of arrays, filled with values that no call writes by chance.
template <class Engine>
struct DispatchMemory {
  using Longs = typename Engine::template Array<std::int64_t>;
  Engine engine;
  typename Engine::template Array<std::int32_t> ids{engine, {0, 1, 2, 0, -1, 1}};
  Longs offsets{engine, std::vector<std::int64_t>(4, 77)};
  Longs counts{engine, std::vector<std::int64_t>(3, 77)};
  Longs row_of_slot{engine, {0, 2, 4, 1, -1, 3}};
  Longs slot_of_row{engine, {0, 3, 1, 5, 2, -1, -1, -1, -1, -1, -1, -1}};
  typename Engine::template Array<std::int32_t> blocks{engine, std::vector<std::int32_t>(6, 77)};
  typename Engine::template Array<mb::Status> status{engine, {mb::Status{}}};
  typename Engine::template Array<std::max_align_t> scratch{engine, std::vector<std::max_align_t>(64)};
  TypedMatrix<Engine> tokens{engine, mb::DataType::float32, 3, 4, 0};
  TypedMatrix<Engine> rows{engine, mb::DataType::float32, 12, 4, 0};
  TypedMatrix<Engine> factors{engine, mb::DataType::float32, 3, 2, 0};
  TypedMatrix<Engine> other_tokens{engine, mb::DataType::float32, 3, 4, 0};
  TypedMatrix<Engine> other_rows{engine, mb::DataType::float32, 12, 4, 0};
  TypedMatrix<Engine> other_factors{engine, mb::DataType::float32, 3, 2, 0};
  TypedMatrix<Engine> own_tokens{engine, mb::DataType::float32, 3, 4, 0};  ///< of experts that return what they are given
  TypedMatrix<Engine> own_factors{engine, mb::DataType::float32, 3, 2, 0};
  mb::Workspace workspace{scratch.data(), mb::permutation_workspace_bytes(3, 2, 3)};

  mb::PermutationArgs permutation() {
    return {.experts = {ids.data(), 3, 2},
            .offsets = {offsets.data(), 4},
            .row_of_slot = {row_of_slot.data(), 3, 2},
            .slot_of_row = {slot_of_row.data(), 12},
            .align = 2,
            .counts = counts.data(),
            .block_size = 2,
            .expert_of_block = {blocks.data(), 6}};
  }
  mb::PermuteArgs permute() {
    return {.hidden = tokens.view(),
            .slot_of_row = {slot_of_row.data(), 12},
            .permuted = rows.view(),
            .top_k = 2,
            .scale = factors.view(),
            .row_of_slot = {row_of_slot.data(), 3, 2}};
  }
  mb::PermuteBackwardArgs permute_backward() {
    return {.grad_permuted = rows.view(),
            .row_of_slot = {row_of_slot.data(), 3, 2},
            .grad_hidden = tokens.view(),
            .scale = factors.view(),
            .hidden = other_tokens.view(),
            .grad_scale = other_factors.view()};
  }
  mb::CombineArgs combine() {
    return {.permuted = rows.view(),
            .row_of_slot = {row_of_slot.data(), 3, 2},
            .combined = tokens.view(),
            .weights = factors.view()};
  }
  mb::IdentityExperts identity() {
    return {.experts = {ids.data(), 3, 2}, .range = {1, 2}, .tokens = own_tokens.view(), .weights = own_factors.view()};
  }
  mb::CombineBackwardArgs combine_backward() {
    return {.grad_combined = tokens.view(),
            .row_of_slot = {row_of_slot.data(), 3, 2},
            .slot_of_row = {slot_of_row.data(), 12},
            .grad_permuted = rows.view(),
            .weights = factors.view(),
            .permuted = other_rows.view(),
            .grad_weights = other_factors.view()};
  }

  [[nodiscard]] auto contents() const {
    return std::tuple(ids.values(), offsets.values(), counts.values(), row_of_slot.values(), slot_of_row.values(),
                      blocks.values(), tokens.bytes(), rows.bytes(), factors.bytes(), other_tokens.bytes(),
                      other_rows.bytes(), other_factors.bytes(), own_tokens.bytes(), own_factors.bytes());
  }
};

/// `call(memory)` must be refused with a message that names the call and the argument, and leave all memory as it was.
template <class Engine, class Call>
void refuses(const std::string& subject, const Call& call) {
  CAPTURE(subject);
  DispatchMemory<Engine> memory;
  const auto before = memory.contents();
  std::string message;
  try {
    call(memory);
  } catch (const mb::InvalidArgument& error) {
    message = error.what();
  }
  CAPTURE(message);
  CHECK(message.rfind("moe_balance: " + subject + " is ", 0) == 0);
  CHECK(message.find("; allowed: ") != std::string::npos);
  CHECK(memory.contents() == before);
}

template <class Engine, class Spoil>
void refuses_permutation(const std::string& argument, const Spoil& spoil) {
  refuses<Engine>("permutation: " + argument, [&](DispatchMemory<Engine>& memory) {
    mb::PermutationArgs args = memory.permutation();
    spoil(args, memory);
    mb::permutation(args, memory.workspace, memory.engine.place());
  });
}

TEST_CASE_TEMPLATE_DEFINE("dispatch refuses a permutation's bad views", Engine, dispatch_errors_permutation) {
  using Memory = DispatchMemory<Engine>;
  using Args = mb::PermutationArgs;
  const auto refuse = [](const std::string& argument, const auto& spoil) { refuses_permutation<Engine>(argument, spoil); };
  refuse("align", [](Args& args, Memory&) { args.align = 0; });
  refuse("align", [](Args& args, Memory&) { args.align = -1; });
  refuse("experts.data", [](Args& args, Memory&) { args.experts.data = nullptr; });
  refuse("experts.stride", [](Args& args, Memory&) { args.experts.stride = 1; });
  refuse("offsets.size", [](Args& args, Memory&) { args.offsets.size = 1; });
  refuse("offsets.size", [](Args& args, Memory&) { args.offsets.size = mb::max_dispatch_experts + 2; });
  refuse("offsets.data", [](Args& args, Memory&) { args.offsets.data = nullptr; });
  refuse("row_of_slot.rows", [](Args& args, Memory&) { args.row_of_slot.rows = 2; });
  refuse("row_of_slot.columns", [](Args& args, Memory&) { args.row_of_slot.columns = 1; });
  refuse("slot_of_row.size", [](Args& args, Memory&) { args.slot_of_row.size = 7; });
  refuse("slot_of_row.size", [](Args& args, Memory&) { args.slot_of_row.size = std::int64_t{1} << 61; });
  refuse("rows_per_expert", [](Args& args, Memory&) { args.rows_per_expert = 3; });
  refuse("slot_of_row.size", [](Args& args, Memory&) { args.rows_per_expert = 6; });
  refuse("slot_of_row.size", [](Args& args, Memory&) { args.rows_per_expert = 8, args.zero_experts.count = 1; });
  refuse("zero_experts.count", [](Args& args, Memory&) { args.zero_experts.count = -1; });
  refuse("zero_experts.count", [](Args& args, Memory&) { args.zero_experts.count = 3; });
  refuse("zero_experts.first", [](Args& args, Memory&) { args.zero_experts = {-1, 1}; });
  refuse("zero_experts.first", [](Args& args, Memory&) { args.zero_experts = {2, 2}; });
  refuse("block_size", [](Args& args, Memory&) { args.block_size = 0; });
  refuse("block_size", [](Args& args, Memory&) { args.block_size = 4; });
  refuse("expert_of_block.size", [](Args& args, Memory&) { args.expert_of_block.size = 3; });
  refuse("workspace.data", [](Args&, Memory& memory) { memory.workspace.data = nullptr; });
  refuse("workspace.bytes", [](Args&, Memory& memory) { memory.workspace.bytes = 16; });
}

TEST_CASE_TEMPLATE_DEFINE("dispatch refuses overlapping buffers", Engine, dispatch_errors_overlap) {
  using Memory = DispatchMemory<Engine>;
  using Args = mb::PermutationArgs;
  refuses_permutation<Engine>("row_of_slot", [](Args& args, Memory&) { args.slot_of_row.data = args.row_of_slot.data; });
  refuses_permutation<Engine>("offsets", [](Args& args, Memory&) { args.counts = args.offsets.data + 1; });
  refuses_permutation<Engine>("row_of_slot",
                              [](Args& args, Memory& memory) { memory.workspace.data = args.row_of_slot.data; });
  refuses<Engine>("permute: permuted", [](Memory& memory) {
    mb::PermuteArgs args = memory.permute();
    args.hidden.data = args.permuted.data;
    mb::permute(args, {}, memory.engine.place());
  });
  refuses<Engine>("permute: permuted", [](Memory& memory) {
    mb::PermuteArgs args = memory.permute();
    args.row_of_slot.data = static_cast<const std::int64_t*>(args.permuted.data) + 1;
    mb::permute(args, {}, memory.engine.place());
  });
  refuses<Engine>("combine: combined", [](Memory& memory) {
    mb::CombineArgs args = memory.combine();
    args.permuted.data = args.combined.data;
    mb::combine(args, {}, memory.engine.place());
  });
  refuses<Engine>("combine_backward: grad_permuted", [](Memory& memory) {
    mb::CombineBackwardArgs args = memory.combine_backward();
    args.permuted.data = args.grad_permuted.data;
    mb::combine_backward(args, {}, memory.engine.place());
  });
  // Views that the call would not read, and does not check otherwise.
  refuses<Engine>("combine_backward: grad_permuted", [](Memory& memory) {
    mb::CombineBackwardArgs args = memory.combine_backward();
    args.grad_weights = {};
    args.permuted.data = args.grad_permuted.data;
    args.permuted.stride = 0;
    mb::combine_backward(args, {}, memory.engine.place());
  });
  for (const std::int64_t stride : {4, 0}) {
    refuses<Engine>("permute_backward: grad_hidden", [&](Memory& memory) {
      mb::PermuteBackwardArgs args = memory.permute_backward();
      if (stride == 0) args.grad_scale = {};
      args.hidden.data = args.grad_hidden.data;
      args.hidden.stride = stride;
      mb::permute_backward(args, {}, memory.engine.place());
    });
  }
}

/// Rows may lie between another argument's rows; a column further they share one.
TEST_CASE_TEMPLATE_DEFINE("dispatch takes columns of one table for arguments", Engine, dispatch_columns_of_one_table) {
  const Engine engine;
  DispatchMemory<Engine> memory;
  const mb::PermuteArgs by_itself = memory.permute();
  mb::permute(by_itself, {}, engine.place());
  engine.wait();
  const std::vector<double> expected = decoded(mb::DataType::float32, memory.rows.bytes());
  const std::vector<double> hidden = decoded(mb::DataType::float32, memory.tokens.bytes());
  constexpr std::size_t rows = 12, width = 9;  // hidden in columns 0 to 3, permuted in 4 to 7, nothing in 8
  std::vector<float> values(rows * width, 77.0f);
  for (std::size_t i = 0; i < hidden.size(); ++i) values[i / 4 * width + i % 4] = static_cast<float>(hidden[i]);
  typename Engine::template Array<float> table(engine, values);
  mb::PermuteArgs args = by_itself;
  args.hidden = {table.data(), mb::DataType::float32, 3, 4, width};
  args.permuted = {table.data() + 4, mb::DataType::float32, rows, 4, width};
  mb::permute(args, {}, engine.place());
  engine.wait();
  for (std::size_t i = 0; i < expected.size(); ++i) values[i / 4 * width + 4 + i % 4] = static_cast<float>(expected[i]);
  CHECK(table.values() == values);
  args.permuted.data = table.data() + 3;
  CHECK_THROWS_WITH_AS(mb::permute(args, {}, engine.place()),
                       doctest::Contains("permute: permuted is memory that hidden shares"), mb::InvalidArgument);
  args.permuted.data = table.data() + 6;  // its last column is the next row's first
  CHECK_THROWS_WITH_AS(mb::permute(args, {}, engine.place()),
                       doctest::Contains("permute: permuted is memory that hidden shares"), mb::InvalidArgument);
  engine.wait();
  CHECK(table.values() == values);
}

/// Memory of one of the calls.
template <class Engine, class Args, class Call>
struct OverlapMemory {
  DispatchMemory<Engine> memory;
  Args (DispatchMemory<Engine>::*make)();
  Call call;

  [[nodiscard]] Args args() {
    Args result = (memory.*make)();
    result.status = memory.status.data();
    if constexpr (requires { result.identity; }) result.identity = memory.identity();
    return result;
  }
  void run(const Args& args) { call(args, memory.workspace, memory.engine.place()); }
  [[nodiscard]] auto contents() const { return memory.contents(); }
};

/// A view of the experts that return what they are given.
template <class Args, class View>
Argument<Args> reads_identity(const std::string& name, View mb::IdentityExperts::*view) {
  return {"identity." + name, false,
          [=](Args& args) { return const_cast<void*>(static_cast<const void*>((args.identity.*view).data)); },
          [=](Args& args, void* to) { (args.identity.*view).data = static_cast<decltype((args.identity.*view).data)>(to); }};
}

template <class Engine, class Args, class Call>
void refuses_overlaps_of(const std::string& name, Args (DispatchMemory<Engine>::*make)(), const Call& call,
                         const std::vector<Argument<Args>>& arguments) {
  refuses_overlaps(name, arguments, [&] { return OverlapMemory<Engine, Args, Call>{{}, make, call}; });
}

TEST_CASE_TEMPLATE_DEFINE("dispatch refuses every argument over another that is written, and over one that it writes",
                          Engine, dispatch_errors_every_overlap) {
  using Memory = DispatchMemory<Engine>;
  const auto run_permutation = [](const auto& args, const auto& workspace, const auto& place) {
    mb::permutation(args, workspace, place);
  };
  using P = mb::PermutationArgs;
  refuses_overlaps_of<Engine>(
      "permutation", &Memory::permutation, run_permutation,
      {reads("experts", &P::experts), writes("offsets", &P::offsets), writes("row_of_slot", &P::row_of_slot),
       writes("slot_of_row", &P::slot_of_row), writes("counts", &P::counts), writes("expert_of_block", &P::expert_of_block),
       writes("status", &P::status)});
  const auto run_permute = [](const auto& args, const auto& workspace, const auto& place) {
    mb::permute(args, workspace, place);
  };
  using M = mb::PermuteArgs;
  refuses_overlaps_of<Engine>(
      "permute", &Memory::permute, run_permute,
      {reads("hidden", &M::hidden), reads("slot_of_row", &M::slot_of_row), writes("permuted", &M::permuted),
       reads("scale", &M::scale), reads("row_of_slot", &M::row_of_slot), writes("status", &M::status)});
  const auto run_permute_backward = [](const auto& args, const auto& workspace, const auto& place) {
    mb::permute_backward(args, workspace, place);
  };
  using B = mb::PermuteBackwardArgs;
  refuses_overlaps_of<Engine>("permute_backward", &Memory::permute_backward, run_permute_backward,
                              {reads("grad_permuted", &B::grad_permuted), reads("row_of_slot", &B::row_of_slot),
                               writes("grad_hidden", &B::grad_hidden), reads("scale", &B::scale),
                               reads("hidden", &B::hidden), writes("grad_scale", &B::grad_scale),
                               writes("status", &B::status), reads_identity<B>("experts", &mb::IdentityExperts::experts),
                               reads_identity<B>("tokens", &mb::IdentityExperts::tokens),
                               reads_identity<B>("weights", &mb::IdentityExperts::weights)});
  const auto run_combine = [](const auto& args, const auto& workspace, const auto& place) {
    mb::combine(args, workspace, place);
  };
  using C = mb::CombineArgs;
  refuses_overlaps_of<Engine>("combine", &Memory::combine, run_combine,
                              {reads("permuted", &C::permuted), reads("row_of_slot", &C::row_of_slot),
                               writes("combined", &C::combined), reads("weights", &C::weights), writes("status", &C::status),
                               reads_identity<C>("experts", &mb::IdentityExperts::experts),
                               reads_identity<C>("tokens", &mb::IdentityExperts::tokens),
                               reads_identity<C>("weights", &mb::IdentityExperts::weights)});
  const auto run_combine_backward = [](const auto& args, const auto& workspace, const auto& place) {
    mb::combine_backward(args, workspace, place);
  };
  using D = mb::CombineBackwardArgs;
  refuses_overlaps_of<Engine>(
      "combine_backward", &Memory::combine_backward, run_combine_backward,
      {reads("grad_combined", &D::grad_combined), reads("row_of_slot", &D::row_of_slot),
       reads("slot_of_row", &D::slot_of_row), writes("grad_permuted", &D::grad_permuted), reads("weights", &D::weights),
       reads("permuted", &D::permuted), writes("grad_weights", &D::grad_weights), writes("status", &D::status),
       reads_identity<D>("experts", &mb::IdentityExperts::experts),
       reads_identity<D>("tokens", &mb::IdentityExperts::tokens)});
}

TEST_CASE_TEMPLATE_DEFINE("dispatch refuses hidden states and factors of wrong shapes and types", Engine,
                          dispatch_errors_rows) {
  using Memory = DispatchMemory<Engine>;
  const auto permute = [](const std::string& argument, const auto& spoil) {
    refuses<Engine>("permute: " + argument, [&](Memory& memory) {
      mb::PermuteArgs args = memory.permute();
      spoil(args);
      mb::permute(args, {}, memory.engine.place());
    });
  };
  permute("hidden.columns", [](mb::PermuteArgs& args) { args.hidden.columns = 0; });
  permute("hidden.type", [](mb::PermuteArgs& args) { args.hidden.type = args.permuted.type = mb::DataType(9); });
  permute("slot_of_row.size", [](mb::PermuteArgs& args) {
    constexpr std::int64_t rows = std::int64_t{1} << 60;  // elements of two bytes would fit, indices do not
    args.hidden = {args.hidden.data, mb::DataType::float16, 3, 1, 1};
    args.permuted = {args.permuted.data, mb::DataType::float16, rows, 1, 1};
    args.slot_of_row.size = rows;
  });
  permute("hidden.rows", [](mb::PermuteArgs& args) {
    args.hidden = {args.hidden.data, mb::DataType::float16, std::int64_t{1} << 61, 1, 1};
    args.top_k = 2048;
  });
  permute("scale.type", [](mb::PermuteArgs& args) { args.scale.type = mb::DataType(9); });
  permute("hidden.data", [](mb::PermuteArgs& args) { args.hidden.data = nullptr; });
  permute("top_k", [](mb::PermuteArgs& args) { args.top_k = 0; });
  permute("top_k", [](mb::PermuteArgs& args) { args.top_k = mb::PermuteArgs{}.top_k; });
  permute("padding", [](mb::PermuteArgs& args) { args.padding = mb::Padding(2); });
  permute("permuted.columns", [](mb::PermuteArgs& args) { args.permuted.columns = 3; });
  permute("permuted.type", [](mb::PermuteArgs& args) { args.permuted.type = mb::DataType::bfloat16; });
  permute("slot_of_row.size", [](mb::PermuteArgs& args) { args.slot_of_row.size = 11; });
  permute("scale.columns", [](mb::PermuteArgs& args) { args.scale.columns = 1; });
  permute("scale.type", [](mb::PermuteArgs& args) { args.scale.type = mb::DataType::float16; });
  permute("row_of_slot.rows", [](mb::PermuteArgs& args) { args.row_of_slot.rows = 2; });
  permute("row_of_slot.columns", [](mb::PermuteArgs& args) { args.row_of_slot.columns = 1; });
  permute("row_of_slot.columns", [](mb::PermuteArgs& args) { args.row_of_slot = {args.row_of_slot.data, 3, 3}; });
  permute("row_of_slot.stride", [](mb::PermuteArgs& args) { args.row_of_slot.stride = 1; });
  if constexpr (!Engine::has_float64) {
    permute("hidden.type", [](mb::PermuteArgs& args) { args.hidden.type = mb::DataType::float64; });
  }
  const auto combine = [](const std::string& argument, const auto& spoil) {
    refuses<Engine>("combine: " + argument, [&](Memory& memory) {
      mb::CombineArgs args = memory.combine();
      spoil(args);
      mb::combine(args, {}, memory.engine.place());
    });
  };
  combine("combined.columns", [](mb::CombineArgs& args) { args.combined.columns = 3; });
  combine("row_of_slot.rows", [](mb::CombineArgs& args) { args.row_of_slot.rows = 2; });
  combine("row_of_slot.columns", [](mb::CombineArgs& args) { args.row_of_slot.columns = 0; });
  combine("weights.rows", [](mb::CombineArgs& args) { args.weights.rows = 2; });
  combine("permuted.stride", [](mb::CombineArgs& args) { args.permuted.stride = 3; });
  combine("permuted.rows", [](mb::CombineArgs& args) { args.permuted.rows = std::int64_t{1} << 61; });
  const auto backward = [](const std::string& argument, const auto& spoil) {
    refuses<Engine>("combine_backward: " + argument, [&](Memory& memory) {
      mb::CombineBackwardArgs args = memory.combine_backward();
      spoil(args);
      mb::combine_backward(args, {}, memory.engine.place());
    });
  };
  backward("permuted.rows", [](mb::CombineBackwardArgs& args) { args.permuted = {}; });
  backward("padding", [](mb::CombineBackwardArgs& args) { args.padding = mb::Padding(2); });
  backward("grad_weights.columns", [](mb::CombineBackwardArgs& args) { args.grad_weights.columns = 1; });
  backward("slot_of_row.size", [](mb::CombineBackwardArgs& args) { args.slot_of_row.size = 1; });
  refuses<Engine>("permute_backward: hidden.rows", [](Memory& memory) {
    mb::PermuteBackwardArgs args = memory.permute_backward();
    args.hidden = {};
    mb::permute_backward(args, {}, memory.engine.place());
  });
}

TEST_CASE_TEMPLATE_DEFINE("dispatch refuses bad views of experts that return what they are given, and reads no others",
                          Engine, dispatch_errors_identity) {
  using Memory = DispatchMemory<Engine>;
  const auto refuse = [](const std::string& argument, const auto& spoil) {
    const auto by_call = [&](const std::string& name, auto make, const auto& call) {
      refuses<Engine>(name + ": identity." + argument, [&](Memory& memory) {
        auto args = (memory.*make)();
        args.identity = memory.identity();
        spoil(args.identity);
        call(args, memory.engine.place());
      });
    };
    by_call("combine", &Memory::combine, [](const auto& args, const auto& place) { mb::combine(args, {}, place); });
    by_call("permute_backward", &Memory::permute_backward,
            [](const auto& args, const auto& place) { mb::permute_backward(args, {}, place); });
    if (argument.rfind("weights", 0) == 0) return;
    by_call("combine_backward", &Memory::combine_backward,
            [](const auto& args, const auto& place) { mb::combine_backward(args, {}, place); });
  };
  using Identity = mb::IdentityExperts;
  refuse("experts.rows", [](Identity& identity) { identity.experts.rows = 2; });
  refuse("experts.columns", [](Identity& identity) { identity.experts.columns = 1; });
  refuse("experts.stride", [](Identity& identity) { identity.experts.stride = 1; });
  refuse("experts.data", [](Identity& identity) { identity.experts.data = nullptr; });
  refuse("experts.rows", [](Identity& identity) { identity.experts = {}; });
  refuse("range.first", [](Identity& identity) { identity.range.first = -1; });
  refuse("range.first", [](Identity& identity) { identity.range.first = mb::max_dispatch_experts; });
  refuse("range.count", [](Identity& identity) { identity.range.count = 0; });
  refuse("range.count", [](Identity& identity) { identity.range.count = -1; });
  refuse("range.count", [](Identity& identity) { identity = {.tokens = identity.tokens}; });
  refuse("range.count", [](Identity& identity) { identity = {.range = {.first = 1}}; });
  refuse("tokens.rows", [](Identity& identity) { identity.tokens = {}; });
  refuse("tokens.columns", [](Identity& identity) { identity.tokens.columns = 3; });
  refuse("tokens.data", [](Identity& identity) { identity.tokens.data = nullptr; });
  refuse("tokens.type", [](Identity& identity) { identity.tokens.type = mb::DataType::bfloat16; });
  refuse("weights.columns", [](Identity& identity) { identity.weights.columns = 1; });
  refuse("weights.type", [](Identity& identity) { identity.weights.type = mb::DataType::float16; });

  const Engine engine;
  Memory memory;
  mb::CombineBackwardArgs backward = memory.combine_backward();
  backward.identity = memory.identity();
  backward.identity.weights = {backward.grad_permuted.data, mb::DataType::float32, 1, 1, 1};
  mb::combine_backward(backward, {}, engine.place());
  backward.grad_weights = {};
  backward.identity.tokens = {};
  mb::combine_backward(backward, {}, engine.place());
  engine.wait();
}

/// `call(fresh)` reads fresh.tokens and writes fresh.rows. A slot and a row belong together only if they name each other, as slots 0 and 2 and rows 0
/// and 4 of `memory` do; all other rows are padding.
template <class Engine, class Call>
void check_rows_of_bad_indices(const DispatchMemory<Engine>& memory, mb::Padding padding, const Call& call) {
  DispatchMemory<Engine> fresh;
  const std::vector<double> before = decoded(mb::DataType::float32, fresh.rows.bytes());
  call(fresh);
  memory.engine.wait();
  const std::vector<double> rows = decoded(mb::DataType::float32, fresh.rows.bytes());
  const std::vector<double> tokens = decoded(mb::DataType::float32, fresh.tokens.bytes());
  const std::vector<double> factors = decoded(mb::DataType::float32, memory.factors.bytes());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    CAPTURE(i);
    const std::size_t slot = i / 4 == 0 ? 0 : 2;
    const bool has_slot = i / 4 == 0 || i / 4 == 4;
    const double other = padding == mb::Padding::zero ? 0.0 : before[i];
    CHECK(rows[i] == (has_slot ? static_cast<float>(tokens[slot / 2 * 4 + i % 4] * factors[slot]) : other));
  }
}

/// Where indices cannot be read before the work, bad ones are left out and counted.
template <class Engine>
void counts_bad_indices() {
  DispatchProblem good = dispatch_problem(31, 20, 3, 5, 6, 4);
  DispatchProblem bad = good;
  for (std::size_t i = 0; i < bad.ids.size(); i += 7) {
    good.ids[i] = -1;
    bad.ids[i] = i % 2 == 0 ? 5 : -2;
  }
  const Engine engine;
  typename Engine::template Array<mb::Status> status(engine, {mb::Status{.invalid_experts = 10}});
  CHECK(run_dispatch(engine, bad, status.data()) == run_dispatch(engine, good));
  CHECK(status.values()[0].invalid_experts == 10 + 9);
  bad.sorts = true;
  CHECK(run_dispatch(engine, bad, status.data()) == run_dispatch(engine, good));
  CHECK(status.values()[0].invalid_experts == 10 + 2 * 9);
  CHECK(status.values()[0].invalid_rows == 0);

  DispatchMemory<Engine> memory;
  memory.row_of_slot = typename Engine::template Array<std::int64_t>(engine, {0, 12, 4, -2, -1, 3});
  memory.slot_of_row = typename Engine::template Array<std::int64_t>(engine, {0, 3, 1, 6, 2, -2, -1, -1, -1, -1, -1, 1000});
  mb::PermuteArgs permute = memory.permute();
  permute.status = status.data();
  permute.row_of_slot = {};
  mb::permute(permute, {}, engine.place());
  engine.wait();
  CHECK(status.values()[0].invalid_rows == 3);
  mb::CombineArgs combine = memory.combine();
  combine.status = status.data();
  mb::combine(combine, {}, engine.place());
  engine.wait();
  CHECK(status.values()[0].invalid_rows == 5);
  using Longs = typename Engine::template Array<std::int64_t>;
  DispatchMemory<Engine> bad_rows, no_rows;  // and the same with -1 for what is bad
  bad_rows.row_of_slot = Longs(engine, {0, 12, 4, -2, -1, 3});
  no_rows.row_of_slot = Longs(engine, {0, -1, 4, -1, -1, 3});
  mb::PermuteBackwardArgs permute_backward = bad_rows.permute_backward();
  permute_backward.status = status.data();
  mb::permute_backward(permute_backward, {}, engine.place());
  mb::permute_backward(no_rows.permute_backward(), {}, engine.place());
  engine.wait();
  CHECK(status.values()[0].invalid_rows == 7);
  no_rows.row_of_slot = bad_rows.row_of_slot;
  CHECK(bad_rows.contents() == no_rows.contents());

  std::int64_t invalid = 7;
  for (const mb::Padding padding : {mb::Padding::zero, mb::Padding::untouched}) {
    CAPTURE(static_cast<int>(padding));
    check_rows_of_bad_indices(memory, padding, [&](DispatchMemory<Engine>& fresh) {
      permute = memory.permute();
      permute.hidden = fresh.tokens.view();
      permute.permuted = fresh.rows.view();
      permute.padding = padding;
      permute.status = status.data();
      mb::permute(permute, {}, engine.place());
      engine.wait();  // the memory's own engines wait for streams of theirs
    });
    check_rows_of_bad_indices(memory, padding, [&](DispatchMemory<Engine>& fresh) {
      mb::CombineBackwardArgs backward = memory.combine_backward();
      backward.grad_combined = fresh.tokens.view();
      backward.grad_permuted = fresh.rows.view();
      backward.padding = padding;
      backward.status = status.data();
      mb::combine_backward(backward, {}, engine.place());
      engine.wait();
    });
    invalid += 2 * 5;
    CHECK(status.values()[0].invalid_rows == invalid);
  }
}

/// On the CPU they are refused before anything is written.
template <class Engine>
void refuses_bad_indices() {
  using Memory = DispatchMemory<Engine>;
  const auto set = [](auto& array, std::size_t index, auto value) {
    auto values = array.values();
    values[index] = value;
    array = std::remove_reference_t<decltype(array)>(Engine{}, values);
  };
  for (const int id : {3, -2, 2147483647}) {
    Memory memory;
    set(memory.ids, 3, id);
    const auto before = memory.contents();
    CHECK_THROWS_WITH_AS(
        mb::permutation(memory.permutation(), memory.workspace, memory.engine.place()),
        ("moe_balance: permutation: experts[3] is " + std::to_string(id) + "; allowed: -1 to 2 (-1: an empty slot)").c_str(),
        mb::InvalidArgument);
    CHECK(memory.contents() == before);
  }
  DispatchProblem sorted = dispatch_problem(32, 4, 2, 3, 1, 1);
  sorted.sorts = true;
  sorted.ids[5] = 3;
  CHECK_THROWS_WITH_AS((void)run_dispatch(Engine{}, sorted),
                       "moe_balance: permutation: experts[5] is 3; allowed: -1 to 2 (-1: an empty slot)",
                       mb::InvalidArgument);
  const auto refuses_index = [](const std::string& call, const char* name, auto array, std::size_t index, std::int64_t bad,
                                const auto& run) {
    refuses<Engine>(call + ": " + name + "[" + std::to_string(index) + "]", [&](Memory& memory) {
      std::int64_t& element = (memory.*array).data()[index];
      const std::int64_t good = element;
      element = bad;
      try {
        run(memory);
      } catch (...) {
        element = good;
        throw;
      }
    });
  };
  const auto permute = [](Memory& memory) { mb::permute(memory.permute(), {}, memory.engine.place()); };
  const auto permute_backward = [](Memory& memory) {
    mb::permute_backward(memory.permute_backward(), {}, memory.engine.place());
  };
  const auto combine = [](Memory& memory) { mb::combine(memory.combine(), {}, memory.engine.place()); };
  const auto combine_backward = [](Memory& memory) {
    mb::combine_backward(memory.combine_backward(), {}, memory.engine.place());
  };
  refuses_index("permute", "slot_of_row", &Memory::slot_of_row, 3, 6, permute);
  refuses_index("combine_backward", "slot_of_row", &Memory::slot_of_row, 3, 6, combine_backward);
  refuses_index("permute", "row_of_slot", &Memory::row_of_slot, 1, 12, permute);
  refuses_index("combine", "row_of_slot", &Memory::row_of_slot, 1, 12, combine);
  refuses_index("permute_backward", "row_of_slot", &Memory::row_of_slot, 1, 12, permute_backward);
  refuses_index("combine_backward", "row_of_slot", &Memory::row_of_slot, 1, 12, combine_backward);
}

TEST_CASE_TEMPLATE_DEFINE("dispatch refuses bad ids and rows, or counts them where it cannot look", Engine,
                          dispatch_errors_indices) {
  if constexpr (mb::DispatchEngine<decltype(Engine{}.place())>::reads_arguments)
    refuses_bad_indices<Engine>();
  else
    counts_bad_indices<Engine>();
}

}  // namespace testing
