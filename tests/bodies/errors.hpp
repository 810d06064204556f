// CONTRACT.md line 14: bad input is an InvalidArgument that names the argument, its value and what is allowed, and nothing is written.
#pragma once

#include "everything.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

namespace testing {

inline bool untouched(const Outcome& before, const Outcome& after) {
  return same_bits(before, after) && before.bias == after.bias && before.parts == after.parts && before.saved == after.saved;
}

/// Runs `call`, which must be refused with a message of the documented form that names `argument` and `value`.
template <class Call>
void check_message(const std::string& call_name, const std::string& argument, const std::string& value, const Call& call) {
  CAPTURE(call_name);
  CAPTURE(argument);
  std::string message;
  try {
    call();
  } catch (const mb::InvalidArgument& error) {
    message = error.what();
  }
  REQUIRE_MESSAGE(!message.empty(), "accepted");
  CAPTURE(message);
  const std::string subject = "moe_balance: " + call_name + ": " + argument;
  CHECK(message.rfind(subject, 0) == 0);
  CHECK(message.find(" is " + value) != std::string::npos);
  const std::size_t allowed = message.find("; allowed: ");
  CHECK(allowed != std::string::npos);
  CHECK(message.size() > allowed + 11);
}

/// forward with arguments that `spoil` made bad.
template <class Engine, class Router, class Spoil>
void refuses_forward(const Engine& engine, const Router& router, const Inputs& inputs, const std::string& argument,
                     const std::string& value, const Spoil& spoil) {
  Memory<Engine> memory = memory_for(engine, router, inputs);
  const Outcome before = memory.outcome();
  mb::ForwardArgs args = memory.forward_args();
  spoil(args);
  check_message("forward", argument, value, [&] { router.forward(args, memory.workspace(), engine.place()); });
  CHECK(untouched(before, memory.outcome()));
}

template <class Engine, class Router, class Spoil>
void refuses_backward(const Engine& engine, const Router& router, const Inputs& inputs, const std::string& argument,
                      const std::string& value, const Spoil& spoil) {
  Memory<Engine> memory = memory_for(engine, router, inputs);
  router.forward(memory.forward_args(), memory.workspace(), engine.place());
  const Outcome before = memory.outcome();
  mb::BackwardArgs args = memory.backward_args();
  spoil(args);
  check_message("backward", argument, value, [&] { router.backward(args, memory.workspace(), engine.place()); });
  CHECK(untouched(before, memory.outcome()));
}

/// The pointer moved by one byte: misaligned for every element type.
template <class T>
T* misaligned(T* pointer) {
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(pointer) + 1);
}
inline const void* misaligned(const void* pointer) {
  return static_cast<const char*>(pointer) + 1;
}
inline void* misaligned(void* pointer) {
  return static_cast<char*>(pointer) + 1;
}

inline auto error_router() {
  return mb::Router{mb::Sigmoid{}, mb::TopK<4>{}, everything()};
}
inline Inputs error_inputs() {
  Inputs inputs = full_inputs(91, 6, 16, 4);
  inputs.sequences = 2;
  return inputs;
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: forward refuses null views", Engine, errors_null) {
  const Engine engine;
  const auto refuses = [&](const char* argument, const auto& spoil) {
    refuses_forward(engine, error_router(), error_inputs(), argument, "null", spoil);
  };
  refuses("logits.data", [](mb::ForwardArgs& args) { args.logits.data = nullptr; });
  refuses("experts.data", [](mb::ForwardArgs& args) { args.experts.data = nullptr; });
  refuses("weights.data", [](mb::ForwardArgs& args) { args.weights.data = nullptr; });
  refuses("bias.data", [](mb::ForwardArgs& args) { args.bias = {}; });
  refuses("load.counts", [](mb::ForwardArgs& args) { args.load = {}; });
  refuses("saved.data", [](mb::ForwardArgs& args) { args.saved.data = nullptr; });
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: forward refuses misaligned views", Engine, errors_misaligned) {
  const Engine engine;
  const auto refuses = [&](const char* argument, const auto& spoil) {
    refuses_forward(engine, error_router(), error_inputs(), argument, "at address", spoil);
  };
  refuses("logits.data", [](mb::ForwardArgs& args) { args.logits.data = misaligned(args.logits.data); });
  refuses("experts.data", [](mb::ForwardArgs& args) { args.experts.data = misaligned(args.experts.data); });
  refuses("weights.data", [](mb::ForwardArgs& args) { args.weights.data = misaligned(args.weights.data); });
  refuses("counts", [](mb::ForwardArgs& args) { args.counts = misaligned(args.counts); });
  refuses("bias.data", [](mb::ForwardArgs& args) { args.bias.data = misaligned(args.bias.data); });
  refuses("load.counts", [](mb::ForwardArgs& args) { args.load.counts = misaligned(args.load.counts); });
  refuses("saved.data", [](mb::ForwardArgs& args) { args.saved.data = misaligned(args.saved.data); });
  refuses("status", [](mb::ForwardArgs& args) { args.status = misaligned(args.status); });
  refuses("tokens_on_device", [](mb::ForwardArgs& args) { args.tokens_on_device = misaligned(args.counts); });
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: forward refuses shapes that no tier covers and sizes that fit no memory", Engine,
                          errors_shape) {
  const Engine engine;
  const auto refuses = [&](const char* argument, const char* value, const auto& spoil) {
    refuses_forward(engine, error_router(), error_inputs(), argument, value, spoil);
  };
  refuses("logits.columns", "0;", [](mb::ForwardArgs& args) { args.logits.columns = 0; });
  refuses("logits.columns", "-1;", [](mb::ForwardArgs& args) { args.logits.columns = -1; });
  refuses("logits.columns", "2049;", [](mb::ForwardArgs& args) { args.logits.columns = args.logits.stride = 2049; });
  refuses("logits.rows", "-1;", [](mb::ForwardArgs& args) { args.logits.rows = -1; });
  refuses("top_k.k", "4;", [](mb::ForwardArgs& args) { args.logits.columns = args.bias.experts = args.load.experts = 3; });
  refuses("logits.rows", std::to_string(std::numeric_limits<std::int64_t>::max()).c_str(),
          [](mb::ForwardArgs& args) { args.logits.rows = std::numeric_limits<std::int64_t>::max(); });
  refuses("logits.rows", std::to_string(std::int64_t{1} << 60).c_str(),
          [](mb::ForwardArgs& args) { args.logits.rows = args.experts.rows = args.weights.rows = std::int64_t{1} << 60; });
  refuses("logits.stride", std::to_string(std::int64_t{1} << 60).c_str(),
          [](mb::ForwardArgs& args) { args.logits.stride = std::int64_t{1} << 60; });
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: forward refuses wrong rows, columns and strides", Engine, errors_views) {
  const Engine engine;
  const auto refuses = [&](const char* argument, const char* value, const auto& spoil) {
    refuses_forward(engine, error_router(), error_inputs(), argument, value, spoil);
  };
  refuses("logits.stride", "15;", [](mb::ForwardArgs& args) { args.logits.stride = 15; });
  refuses("logits.stride", "-16;", [](mb::ForwardArgs& args) { args.logits.stride = -16; });
  refuses("experts.rows", "5;", [](mb::ForwardArgs& args) { args.experts.rows = 5; });
  refuses("experts.columns", "3;", [](mb::ForwardArgs& args) { args.experts.columns = 3; });
  refuses("experts.stride", "3;", [](mb::ForwardArgs& args) { args.experts.stride = 3; });
  refuses("weights.rows", "7;", [](mb::ForwardArgs& args) { args.weights.rows = 7; });
  refuses("weights.columns", "5;", [](mb::ForwardArgs& args) { args.weights.columns = 5; });
  refuses("weights.stride", "0;", [](mb::ForwardArgs& args) { args.weights.stride = 0; });
  refuses("bias.experts", "15;", [](mb::ForwardArgs& args) { args.bias.experts = 15; });
  refuses("bias.layers", "2;", [](mb::ForwardArgs& args) { args.bias.layers = 2; });
  refuses("bias.memory", "-1;", [](mb::ForwardArgs& args) { args.bias.memory = -1; });
  refuses("bias.memory", "9;", [](mb::ForwardArgs& args) { args.bias.memory = 9; });
  refuses("load.experts", "17;", [](mb::ForwardArgs& args) { args.load.experts = 17; });
  refuses("load.layers", "0;", [](mb::ForwardArgs& args) { args.load.layers = 0; });
  refuses("saved.bytes", std::to_string(8).c_str(), [](mb::ForwardArgs& args) { args.saved.bytes = 8; });
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: forward refuses element types that do not go together", Engine, errors_types) {
  const Engine engine;
  const auto refuses = [&](mb::DataType logits, mb::DataType weights, const char* value) {
    refuses_forward(engine, error_router(), error_inputs(), "weights.type", value, [=](mb::ForwardArgs& args) {
      args.logits.type = logits;
      args.weights.type = weights;
    });
  };
  refuses(mb::DataType::float32, mb::DataType::float16, "float16");
  refuses(mb::DataType::float32, mb::DataType::float64, "float64");
  refuses(mb::DataType::bfloat16, mb::DataType::float16, "float16");
  if constexpr (Engine::has_float64) {
    refuses(mb::DataType::float64, mb::DataType::float32, "float32");
  } else {
    refuses_forward(engine, error_router(), error_inputs(), "logits.type", "float64",
                    [](mb::ForwardArgs& args) { args.logits.type = args.weights.type = mb::DataType::float64; });
  }
  refuses_forward(engine, error_router(), error_inputs(), "logits.type", "9;",
                  [](mb::ForwardArgs& args) { args.logits.type = args.weights.type = mb::DataType(9); });
  refuses_backward(engine, error_router(), error_inputs(), "logits.type", "9;",
                   [](mb::BackwardArgs& args) { args.logits.type = args.grad_logits.type = mb::DataType(9); });
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: forward refuses sequences that do not fit the tokens", Engine, errors_sequences) {
  const Engine engine;
  Inputs inputs = error_inputs();
  const auto refuses = [&](const char* argument, const char* value, const auto& spoil) {
    refuses_forward(engine, error_router(), inputs, argument, value, spoil);
  };
  refuses("sequences.count", "0;", [](mb::ForwardArgs& args) { args.sequences.count = 0; });
  refuses("sequences.count", "-3;", [](mb::ForwardArgs& args) { args.sequences.count = -3; });
  refuses("sequences.count", "4;", [](mb::ForwardArgs& args) { args.sequences.count = 4; });
  refuses("sequences.layout", "7;", [](mb::ForwardArgs& args) { args.sequences.layout = mb::Sequences::Layout(7); });
  refuses("sequences.offsets", "null",
          [](mb::ForwardArgs& args) { args.sequences.layout = mb::Sequences::Layout::offsets; });
  if constexpr (Engine::has_float64) {  // a GPU's offsets are not read by the host
    inputs.layout = mb::Sequences::Layout::offsets;
    const auto refuses_offsets = [&](std::vector<std::int64_t> offsets, const char* argument, const char* value) {
      inputs.offsets = std::move(offsets);
      refuses(argument, value, [](mb::ForwardArgs&) {});
    };
    refuses_offsets({1, 3, 6}, "sequences.offsets[0]", "1;");
    refuses_offsets({0, 7, 6}, "sequences.offsets[1]", "7;");
    refuses_offsets({0, -1, 6}, "sequences.offsets[1]", "-1;");
    refuses_offsets({0, 3, 5}, "sequences.offsets[2]", "5;");
    refuses_offsets({0, 3, 7}, "sequences.offsets[2]", "7;");
  }
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: GroupLimitedTopK refuses groups that do not fit the experts", Engine,
                          errors_groups) {
  const Engine engine;
  const auto refuses = [&](mb::GroupLimitedTopK<4> selection, const char* argument, const char* value) {
    refuses_forward(engine, mb::Router{mb::Sigmoid{}, selection}, error_inputs(), argument, value, [](mb::ForwardArgs&) {});
  };
  refuses({.groups = 0, .groups_kept = 1}, "top_k.groups", "0;");
  refuses({.groups = 5, .groups_kept = 2}, "top_k.groups", "5;");
  refuses({.groups = 32, .groups_kept = 2}, "top_k.groups", "32;");
  refuses({.groups = -4, .groups_kept = 2}, "top_k.groups", "-4;");
  refuses({.groups = 4, .groups_kept = 0}, "top_k.groups_kept", "0;");
  refuses({.groups = 4, .groups_kept = 5}, "top_k.groups_kept", "5;");
  refuses({.groups = 8, .groups_kept = 1}, "top_k.groups_kept", "1;");  // 1 * 2 experts < K
  refuses({.groups = 4, .groups_kept = 2, .group_score_top = 0}, "top_k.group_score_top", "0;");
  refuses({.groups = 4, .groups_kept = 2, .group_score_top = 5}, "top_k.group_score_top", "5;");
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: options that are not finite are refused by each call that they change", Engine,
                          errors_options) {
  const Engine engine;
  const Inputs inputs = error_inputs();
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    const std::string value = std::to_string(bad) + ";";
    const auto no_change = [](auto&) {};
    const auto refuses_selection = [&](const auto& selection) {
      const mb::Router router{mb::Sigmoid{}, selection};
      refuses_forward(engine, router, inputs, "top_k.scaling_factor", value, no_change);
      Memory<Engine> memory = memory_for(engine, router, inputs);
      const Outcome before = memory.outcome();
      check_message("backward", "top_k.scaling_factor", value,
                    [&] { router.backward(memory.backward_args(), memory.workspace(), engine.place()); });
      CHECK(untouched(before, memory.outcome()));
    };
    refuses_selection(mb::TopK<4>{.scaling_factor = bad});
    refuses_selection(mb::GroupLimitedTopK<4>{.groups = 4, .groups_kept = 2, .scaling_factor = bad});

    const auto refuses_balancer = [&](const char* argument, const auto& balancer) {
      const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, balancer};
      refuses_forward(engine, router, inputs, argument, value, no_change);
      Memory<Engine> memory = memory_for(engine, router, inputs);
      const Outcome before = memory.outcome();
      check_message("backward", argument, value,
                    [&] { router.backward(memory.backward_args(), memory.workspace(), engine.place()); });
      if constexpr (router.loss_count > 0) {
        check_message("loss", argument, value, [&] { router.loss(memory.loss_args(), memory.workspace(), engine.place()); });
      }
      const mb::ForwardArgs args = memory.forward_args();
      for (const char* call : {"update", "finish_update"}) {
        check_message(call, argument, value, [&] {
          if (std::string(call) == "update")
            router.update(args.bias, args.load, {}, engine.place());
          else
            router.finish_update(args.bias, args.load, {}, engine.place());
        });
      }
      CHECK(untouched(before, memory.outcome()));
    };
    refuses_balancer("LossFreeBias.update_rate", mb::LossFreeBias{.update_rate = bad});
    refuses_balancer("AuxLoss.coefficient", mb::AuxLoss{.coefficient = bad});
    refuses_balancer("SequenceLoss.coefficient", mb::SequenceLoss{.coefficient = bad});
    refuses_balancer("GlobalBatchLoss.coefficient", mb::GlobalBatchLoss{.coefficient = bad});
    refuses_balancer("AuxLoss.coefficient", mb::FromPlainTopK{mb::AuxLoss{.coefficient = bad}});
    refuses_balancer("ZLoss.coefficient", mb::Combine{mb::AuxLoss{}, mb::LossFreeBias{}, mb::ZLoss{.coefficient = bad}});
    refuses_backward(engine, error_router(), inputs, "loss_scale", value,
                     [&](mb::BackwardArgs& args) { args.loss_scale = bad; });
  }
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: options of zero and below are as good as others", Engine, errors_options_of_zero) {
  const Engine engine;
  for (const float option : {0.0f, -1.0f}) {
    const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{.scaling_factor = option},
                            mb::Combine{mb::AuxLoss{.coefficient = option}, mb::LossFreeBias{.update_rate = option}}};
    Memory<Engine> memory = memory_for(engine, router, error_inputs());
    const mb::ForwardArgs args = memory.forward_args();
    CHECK_NOTHROW(router.forward(args, memory.workspace(), engine.place()));
    CHECK_NOTHROW(router.update(args.bias, args.load, {}, engine.place()));
    mb::BackwardArgs backward = memory.backward_args();
    backward.loss_scale = option;
    CHECK_NOTHROW(router.backward(backward, memory.workspace(), engine.place()));
    engine.wait();
  }
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: Replay refuses missing or misshapen ids", Engine, errors_replay) {
  const Engine engine;
  const mb::Router router{mb::Sigmoid{}, mb::Replay{mb::TopK<4>{}}};
  Inputs inputs = error_inputs();
  inputs.replay_experts = replayed_ids(92, 6, 16, 4);
  const auto refuses = [&](const char* argument, const char* value, const auto& spoil) {
    refuses_forward(engine, router, inputs, argument, value, spoil);
  };
  refuses("replay.experts.data", "null", [](mb::ForwardArgs& args) { args.replay.experts.data = nullptr; });
  refuses("replay.experts.rows", "5;", [](mb::ForwardArgs& args) { args.replay.experts.rows = 5; });
  refuses("replay.experts.columns", "3;", [](mb::ForwardArgs& args) { args.replay.experts.columns = 3; });
  refuses("replay.experts.stride", "2;", [](mb::ForwardArgs& args) { args.replay.experts.stride = 2; });
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: what only another selection writes or reads is refused", Engine, errors_left_out) {
  const Engine engine;
  const auto refuses = [&](const char* argument, const auto& spoil) {
    refuses_forward(engine, error_router(), error_inputs(), argument, "given;", spoil);
  };
  refuses("replay.experts", [](mb::ForwardArgs& args) { args.replay.experts = args.experts; });
  refuses("replay.tokens", [](mb::ForwardArgs& args) { args.replay.tokens = args.active; });
  refuses("chosen", [](mb::ForwardArgs& args) { args.chosen = args.experts; });
  refuses("kept_counts", [](mb::ForwardArgs& args) { args.kept_counts = args.counts; });
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: route names itself in its messages", Engine, errors_route) {
  const Engine engine;
  const Inputs inputs = error_inputs();
  const auto refuses = [&](const char* argument, const char* value, const auto& spoil) {
    Memory<Engine> memory = memory_for(engine, error_router(), inputs);
    const Outcome before = memory.outcome();
    mb::RouteArgs args = memory.route_args();
    spoil(args);
    check_message("route", argument, value, [&] { error_router().route(args, memory.workspace(), engine.place()); });
    CHECK(untouched(before, memory.outcome()));
  };
  refuses("weights.columns", "3;", [](mb::RouteArgs& args) { args.weights.columns = 3; });
  refuses("kept_counts", "given;", [](mb::RouteArgs& args) { args.kept_counts = args.counts; });
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: backward refuses bad views", Engine, errors_backward) {
  const Engine engine;
  const auto refuses = [&](const char* argument, const char* value, const auto& spoil) {
    refuses_backward(engine, error_router(), error_inputs(), argument, value, spoil);
  };
  refuses("logits.data", "null", [](mb::BackwardArgs& args) { args.logits.data = nullptr; });
  refuses("experts.data", "null", [](mb::BackwardArgs& args) { args.experts.data = nullptr; });
  refuses("experts.columns", "5;", [](mb::BackwardArgs& args) { args.experts.columns = 5; });
  refuses("grad_logits.data", "null", [](mb::BackwardArgs& args) { args.grad_logits.data = nullptr; });
  refuses("grad_logits.rows", "5;", [](mb::BackwardArgs& args) { args.grad_logits.rows = 5; });
  refuses("grad_logits.columns", "17;", [](mb::BackwardArgs& args) { args.grad_logits.columns = 17; });
  refuses("grad_logits.stride", "15;", [](mb::BackwardArgs& args) { args.grad_logits.stride = 15; });
  refuses("grad_logits.type", "bfloat16", [](mb::BackwardArgs& args) { args.grad_logits.type = mb::DataType::bfloat16; });
  refuses("grad_logits.data", "at address",
          [](mb::BackwardArgs& args) { args.grad_logits.data = misaligned(args.grad_logits.data); });
  refuses("grad_weights.rows", "4;", [](mb::BackwardArgs& args) { args.grad_weights.rows = 4; });
  refuses("grad_weights.stride", "3;", [](mb::BackwardArgs& args) { args.grad_weights.stride = 3; });
  refuses("grad_weights.type", "float16", [](mb::BackwardArgs& args) { args.grad_weights.type = mb::DataType::float16; });
  refuses("grad_loss", "at address",
          [](mb::BackwardArgs& args) { args.grad_loss = misaligned(reinterpret_cast<const float*>(args.saved.data)); });
  refuses("saved.data", "null", [](mb::BackwardArgs& args) { args.saved = {}; });
  refuses("saved.bytes", "16;", [](mb::BackwardArgs& args) { args.saved.bytes = 16; });
  refuses("sequences.count", "4;", [](mb::BackwardArgs& args) { args.sequences.count = 4; });
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: SoftmaxOverSelected with K = 1 has no gradient and is refused in training", Engine,
                          errors_one) {
  refuses_backward(Engine(), mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<1>{}}, normal_inputs(93, 6, 16, 1), "top_k.k",
                   "1;", [](mb::BackwardArgs&) {});
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: loss refuses bad arguments", Engine, errors_loss) {
  const Engine engine;
  const Inputs inputs = error_inputs();
  const auto refuses = [&](const char* argument, const char* value, const auto& spoil) {
    Memory<Engine> memory = memory_for(engine, error_router(), inputs);
    error_router().forward(memory.forward_args(), memory.workspace(), engine.place());
    const Outcome before = memory.outcome();
    mb::LossArgs args = memory.loss_args();
    spoil(args);
    check_message("loss", argument, value, [&] { error_router().loss(args, memory.workspace(), engine.place()); });
    CHECK(untouched(before, memory.outcome()));
  };
  refuses("value", "null", [](mb::LossArgs& args) { args.value = nullptr; });
  refuses("value", "at address", [](mb::LossArgs& args) { args.value = misaligned(args.value); });
  refuses("part_values", "at address", [](mb::LossArgs& args) { args.part_values = misaligned(args.part_values); });
  refuses("experts", "0;", [](mb::LossArgs& args) { args.experts = 0; });
  refuses("experts", "4096;", [](mb::LossArgs& args) { args.experts = 4096; });
  refuses("saved.data", "null", [](mb::LossArgs& args) { args.saved = {}; });
  refuses("saved.bytes", "24;", [](mb::LossArgs& args) { args.saved.bytes = 24; });
  refuses("sequences.count", "0;", [](mb::LossArgs& args) { args.sequences.count = 0; });
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: update refuses bad arguments", Engine, errors_update) {
  const Engine engine;
  typename Engine::template Array<float> bias(engine, std::vector<float>(32, 0.5f));
  typename Engine::template Array<std::int64_t> load(engine, std::vector<std::int64_t>(32, 7));
  const auto refuses = [&](const char* argument, const char* value, mb::BiasRef bias_ref, mb::LoadRef load_ref) {
    check_message("update", argument, value, [&] { error_router().update(bias_ref, load_ref, {}, engine.place()); });
    engine.wait();
    CHECK(bias.values() == std::vector<float>(32, 0.5f));
    CHECK(load.values() == std::vector<std::int64_t>(32, 7));
  };
  const mb::BiasRef good_bias{bias.data(), 16, 2};
  const mb::LoadRef good_load{load.data(), 16, 2};
  refuses("load.counts", "null", good_bias, {});
  refuses("load.counts", "at address", good_bias, {misaligned(load.data()), 16, 1});
  refuses("load.experts", "0;", good_bias, {load.data(), 0, 2});
  refuses("load.experts", "2049;", good_bias, {load.data(), 2049, 1});
  refuses("load.layers", "0;", good_bias, {load.data(), 16, 0});
  refuses("load.stride", "15;", good_bias, {load.data(), 16, 2, 15});
  const auto with_experts = [&](const std::int32_t* experts_of_layer) {
    mb::LoadRef result = good_load;
    result.experts_of_layer = experts_of_layer;
    return result;
  };
  typename Engine::template Array<std::int32_t> experts(engine, {16, 16, 16});
  refuses("load.experts_of_layer", "at address", good_bias, with_experts(misaligned(experts.data())));
  if constexpr (Engine::has_float64) {  // a CPU's memory, whose contents calls read
    const std::int32_t none[] = {0, 16};
    refuses("load.experts_of_layer[0]", "0;", good_bias, with_experts(none));
    const std::int32_t too_many[] = {16, 17};
    refuses("load.experts_of_layer[1]", "17;", good_bias, with_experts(too_many));
  }
  refuses("bias.data", "null", {}, good_load);
  refuses("bias.experts", "8;", {bias.data(), 8, 2}, good_load);
  refuses("bias.layers", "1;", {bias.data(), 16, 1}, good_load);
  refuses("bias.stride", "8;", {bias.data(), 16, 2, 8}, good_load);
  refuses("bias", "memory that load shares", {reinterpret_cast<float*>(load.data() + 31), 16, 2}, good_load);
  refuses("bias.memory", "1;", mb::BiasRef(bias.data(), 8, 1).with_memory(1), {load.data(), 8, 1});
  const mb::Router pid{mb::Sigmoid{}, mb::TopK<2>{}, mb::PidBias{}};
  for (const int memory : {0, 1, 3}) {
    check_message("update", "bias.memory", (std::to_string(memory) + "; allowed: 2").c_str(), [&] {
      pid.update(mb::BiasRef(bias.data(), 8, 1).with_memory(memory), {load.data(), 8, 1}, {}, engine.place());
    });
  }
  // What the rule keeps lies behind the bias: three tables of 8, of which the last runs into the load's memory.
  check_message("update", "bias", "memory that load shares", [&] {
    pid.update(mb::BiasRef(reinterpret_cast<float*>(load.data()) - 16, 8, 1).with_memory(2), {load.data(), 8, 1}, {},
               engine.place());
  });
  check_message("start_update", "load.layers", "0;", [&] {
    error_router().start_update({load.data(), 16, 0}, {}, engine.place());
  });
  check_message("finish_update", "bias.layers", "1;", [&] {
    error_router().finish_update({bias.data(), 16, 1}, good_load, {}, engine.place());
  });
  CHECK(bias.values() == std::vector<float>(32, 0.5f));
  CHECK(load.values() == std::vector<std::int64_t>(32, 7));
}

/// On a GPU a forward that counts margins keeps something of each token in its workspace; on the CPU, and where it counts none, it needs none.
template <class Engine, class Router>
void refuses_workspace_of_margins(const Engine& engine, const Router& router, const Inputs& inputs) {
  const mb::Shape shape = shape_of(inputs);
  const std::size_t bytes = router.workspace_bytes(shape);
  CHECK(bytes == 32);  // 4 for each of 6 tokens, in sixteens
  Memory<Engine> memory = memory_for(engine, router, inputs);
  const mb::ForwardArgs args = memory.forward_args();
  const mb::Workspace whole = memory.workspace();
  auto frozen = router;
  frozen.balancer.frozen = true;
  CHECK(frozen.workspace_bytes(shape) == 0);
  CHECK(router.workspace_bytes({.tokens = -1, .experts = 8}) == std::numeric_limits<std::size_t>::max());
  CHECK_NOTHROW(frozen.forward(args, {}, engine.place()));
  CHECK_NOTHROW(router.route(memory.route_args(), {}, engine.place()));
  if constexpr (Engine::has_float64) {
    CHECK_NOTHROW(router.forward(args, {}, engine.place()));
  } else {
    const Outcome before = memory.outcome();
    const auto refuses = [&](const char* argument, const char* value, const mb::Workspace& workspace) {
      check_message("forward", argument, value, [&] { router.forward(args, workspace, engine.place()); });
    };
    refuses("workspace.data", "null", {});
    refuses("workspace.data", "at address", {misaligned(whole.data), bytes});
    refuses("workspace.bytes", "31; allowed: 32 to", {whole.data, bytes - 1});
    refuses("load", "memory that workspace shares", {args.load.counts, bytes});
    CHECK(untouched(before, memory.outcome()));
    CHECK_NOTHROW(router.forward(args, whole, engine.place()));
  }
  engine.wait();
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: a load without the histograms that the rule reads, or with others, is refused",
                          Engine, errors_margins) {
  const Engine engine;
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::QuantileBias{.bins = 3}};
  Inputs inputs = normal_inputs(97, 6, 8, 4);
  inputs.bias = normal_bias(98, 8);
  inputs.load = std::vector<std::int64_t>(32, 5);
  inputs.backward = false;
  const auto refuses = [&](const char* argument, const char* value, const auto& spoil) {
    refuses_forward(engine, router, inputs, argument, value, spoil);
  };
  refuses("load.bins", "0; allowed: 3 (the bins that the balancer's rule counts in: Load{router, experts, layers})",
          [](mb::ForwardArgs& args) { args.load.bins = 0; });
  refuses("load.bins", "4; allowed: 3", [](mb::ForwardArgs& args) { args.load.bins = 4; });
  refuses("load.stride", "31; allowed: 32 to 2147483647", [](mb::ForwardArgs& args) { args.load.stride = 31; });
  refuses("load.stride", "8; allowed: 32 to",
          [](mb::ForwardArgs& args) {  // a layer of a load that had none when it was described
            args.load = mb::LoadRef(args.load.counts, 8, 3).layer(1);
            args.load.bins = 3;
          });
  refuses("load.counts", "null", [](mb::ForwardArgs& args) { args.load = {}; });
  refuses("logits.columns", "4; allowed: 5 to 2048 (experts to leave unchosen, for the margins)",
          [](mb::ForwardArgs& args) { args.logits.columns = args.bias.experts = args.load.experts = 4; });
  // The last expert's histogram.
  refuses("counts", "memory that load shares", [](mb::ForwardArgs& args) { args.counts = args.load.counts + 31; });
  Memory<Engine> no_more_experts = memory_for(engine, router, inputs);
  mb::ForwardArgs args = no_more_experts.forward_args();
  args.logits.columns = args.bias.experts = args.load.experts = 4;
  args.accumulate = false;  // counts no margins
  CHECK_NOTHROW(router.forward(args, {}, engine.place()));
  engine.wait();
  refuses_workspace_of_margins(engine, router, inputs);

  typename Engine::template Array<float> bias(engine, std::vector<float>(16, 0.5f));
  typename Engine::template Array<std::int64_t> load(engine, std::vector<std::int64_t>(64, 7));
  const mb::BiasRef bias_ref(bias.data(), 8, 2);
  const auto refuses_update = [&](const char* argument, const char* value, const mb::LoadRef& load_ref) {
    check_message("update", argument, value, [&] { router.update(bias_ref, load_ref, {}, engine.place()); });
    check_message("start_update", argument, value, [&] { router.start_update(load_ref, {}, engine.place()); });
  };
  const mb::LoadRef all = mb::LoadRef::with_bins(load.data(), 3, 8, 2);
  CHECK(all.stride == 32);
  mb::LoadRef others = all;
  others.bins = 0;
  refuses_update("load.bins", "0; allowed: 3", others);
  others.bins = 4;
  refuses_update("load.bins", "4; allowed: 3", others);
  mb::LoadRef narrow = all;
  narrow.stride = 31;
  refuses_update("load.stride", "31; allowed: 32 to 2147483647 (from what a layer has with its histograms on)", narrow);
  check_message("update", "load.bins", "3; allowed: 0", [&] { error_router().update(bias_ref, all, {}, engine.place()); });
  check_message("update", "bias", "memory that load shares", [&] {
    router.update({reinterpret_cast<float*>(load.data() + 63), 8, 2}, all, {}, engine.place());
  });
  engine.wait();
  CHECK(bias.values() == std::vector<float>(16, 0.5f));
  CHECK(load.values() == std::vector<std::int64_t>(64, 7));
}

TEST_CASE_TEMPLATE_DEFINE("contract 14: what is right but unusual is accepted", Engine, errors_none) {
  const Engine engine;
  // A view of no rows may be null, whatever its stride.
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}};
  mb::ForwardArgs args;
  args.logits.columns = 16;
  args.logits.stride = 16;
  args.experts = {nullptr, 0, 4};
  args.weights = mb::MatrixView<float>(nullptr, 0, 4);
  CHECK_NOTHROW(router.forward(args, {}, engine.place()));
  // Optional arguments left out.
  Inputs inputs = error_inputs();
  inputs.bias.clear();
  inputs.load.clear();
  inputs.active.clear();
  Memory<Engine> memory = memory_for(engine, router, inputs);
  mb::ForwardArgs bare = memory.forward_args();
  bare.counts = nullptr;
  bare.status = nullptr;
  CHECK_NOTHROW(router.forward(bare, memory.workspace(), engine.place()));
  // Loads and biases of layers as columns of one table.
  typename Engine::template Array<std::int64_t> table(engine, std::vector<std::int64_t>(2 * 24));
  float* const biases = reinterpret_cast<float*>(table.data() + 16);
  CHECK_NOTHROW(error_router().update({biases, 16, 2, 48}, {table.data(), 16, 2, 24}, {}, engine.place()));
  engine.wait();
}

}  // namespace testing
