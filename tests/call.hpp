// One routing problem as host values, and everything Router's calls make of it, read back as host values.
// Outputs are poisoned before each call, rows may be longer than their content, and what lies between rows must stay as it was.
#pragma once

#include "elements.hpp"

#include <moe_balance/arguments.hpp>

#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

namespace testing {

inline constexpr std::uint8_t poison = 0xa5;

/// Empty vectors are arguments left out.
struct Inputs {
  std::int64_t tokens = 0;
  int experts = 0;
  mb::DataType logits_type = mb::DataType::float32;
  mb::DataType weights_type = mb::DataType::float32;
  mb::DataType grad_type = mb::DataType::float32;
  std::vector<double> logits;                ///< [T, E], rounded to logits_type on the way in
  std::vector<float> bias;                   ///< [E]
  std::vector<std::int64_t> load;            ///< [E] or [(1 + bins) * E], what lies in the load before the call
  std::vector<std::uint8_t> active;          ///< [T]
  std::vector<std::uint8_t> balanced;        ///< [T]
  std::vector<std::int32_t> replay_experts;  ///< [T, K]
  std::vector<std::uint8_t> replay_tokens;   ///< [T]
  std::vector<double> grad_weights;          ///< [T, K]
  mb::Sequences::Layout layout = mb::Sequences::Layout::sequence_major;
  std::int64_t sequences = 1;
  std::vector<std::int64_t> offsets;   ///< [sequences + 1]
  std::int64_t tokens_on_device = -1;  ///< -1 = left out
  bool accumulate = true;
  bool backward = true;
  float loss_scale = 1.0f;
  std::optional<float> grad_loss;
  int loss_parts = 0;            ///< how many losses the balancer has; 0 = do not ask for parts
  std::int64_t row_padding = 0;  ///< elements between the rows of every matrix
};

struct Outcome {
  std::vector<std::int32_t> experts;  ///< [T, K]
  std::vector<double> weights;        ///< [T, K]
  Bytes weights_bytes;
  std::vector<std::int64_t> counts;  ///< [E]
  std::vector<std::int64_t> load;    ///< as the inputs', or empty
  std::vector<float> bias;           ///< as it lies there after the calls
  std::vector<double> grad_logits;   ///< [T, E] or empty
  Bytes grad_bytes;
  float loss = 0;
  std::vector<float> parts;
  std::vector<std::int64_t> saved;  ///< as it lies there, whatever it means
  mb::Status status;
  bool padding_untouched = true;
};

/// Do two outcomes agree bit for bit?
inline bool same_bits(const Outcome& a, const Outcome& b) {
  return a.experts == b.experts && a.weights_bytes == b.weights_bytes && a.counts == b.counts && a.load == b.load &&
         a.grad_bytes == b.grad_bytes && std::bit_cast<std::uint32_t>(a.loss) == std::bit_cast<std::uint32_t>(b.loss) &&
         a.status.non_finite_tokens == b.status.non_finite_tokens && a.status.invalid_experts == b.status.invalid_experts;
}

/// Spreads the rows of a dense matrix: `padding` poisoned elements after each.
inline Bytes with_row_padding(const Bytes& dense, std::size_t row_bytes, std::size_t padding_bytes) {
  Bytes spread;
  for (std::size_t at = 0; at + row_bytes <= dense.size() && row_bytes > 0; at += row_bytes) {
    spread.insert(spread.end(), dense.begin() + static_cast<std::ptrdiff_t>(at),
                  dense.begin() + static_cast<std::ptrdiff_t>(at + row_bytes));
    spread.insert(spread.end(), padding_bytes, poison);
  }
  return spread;
}

/// Takes the padding out again; false in `untouched` when a byte of it changed.
inline Bytes without_row_padding(const Bytes& spread, std::size_t row_bytes, std::size_t padding_bytes, bool& untouched) {
  Bytes dense;
  for (std::size_t at = 0; at + row_bytes + padding_bytes <= spread.size() && row_bytes > 0;
       at += row_bytes + padding_bytes) {
    for (std::size_t i = 0; i < row_bytes; ++i) dense.push_back(spread[at + i]);
    for (std::size_t i = row_bytes; i < row_bytes + padding_bytes; ++i) untouched = untouched && spread[at + i] == poison;
  }
  return dense;
}

/// All memory of one problem, where the calls run.
template <class Engine>
class Memory {
 public:
  template <class T>
  using Array = typename Engine::template Array<T>;

  /// `replays`: whether the router's selection takes replayed ids.
  Memory(const Engine& engine, const Inputs& inputs, int k, std::size_t workspace_bytes, std::size_t saved_bytes,
         bool replays = false)
      : engine_(engine),
        inputs_(inputs),
        k_(k),
        replays_(replays),
        logits_(engine, spread(encoded(inputs.logits_type, inputs.logits), inputs.logits_type, inputs.experts)),
        experts_(engine, poisoned(mb::DataType::float32, k)),
        weights_(engine, poisoned(inputs.weights_type, k)),
        grad_logits_(engine, inputs.backward ? poisoned(inputs.grad_type, inputs.experts) : Bytes{}),
        grad_weights_(engine, spread(encoded(inputs.weights_type, inputs.grad_weights), inputs.weights_type, k)),
        counts_(engine, std::vector<std::int64_t>(static_cast<std::size_t>(inputs.experts), 0x5a5a5a5a5a)),
        bias_(engine, inputs.bias),
        load_(engine, inputs.load),
        active_(engine, inputs.active),
        balanced_(engine, inputs.balanced),
        replay_experts_(engine, inputs.replay_experts),
        replay_tokens_(engine, inputs.replay_tokens),
        offsets_(engine, inputs.offsets),
        tokens_on_device_(engine, std::vector<std::int64_t>{inputs.tokens_on_device}),
        grad_loss_(engine, std::vector<float>{inputs.grad_loss.value_or(0.0f)}),
        loss_(engine, std::vector<float>{-1.0f}),
        parts_(engine, std::vector<float>(static_cast<std::size_t>(inputs.loss_parts), -1.0f)),
        status_(engine, std::vector<std::int64_t>(sizeof(mb::Status) / sizeof(std::int64_t))),
        workspace_(engine, poisoned_workspace(workspace_bytes)),
        workspace_bytes_(workspace_bytes),
        saved_(engine, std::vector<std::int64_t>(saved_bytes / sizeof(std::int64_t), 0x3c3c3c3c3c3c)),
        saved_bytes_(saved_bytes) {}

  mb::Workspace workspace() { return {workspace_.data(), workspace_bytes_}; }
  mb::SavedRef saved() { return saved_bytes_ == 0 ? mb::SavedRef{} : mb::SavedRef{saved_.data(), saved_bytes_}; }

  mb::RouteArgs route_args() {
    mb::RouteArgs args;
    fill_selection(args);
    return args;
  }
  mb::ForwardArgs forward_args() {
    mb::ForwardArgs args;
    fill_selection(args);
    if (!inputs_.load.empty()) {
      const int bins = static_cast<int>(inputs_.load.size()) / inputs_.experts - 1;
      args.load = mb::LoadRef::with_bins(load_.data(), bins, inputs_.experts);
    }
    args.saved = saved();
    args.sequences = sequences();
    args.accumulate = inputs_.accumulate;
    args.balanced = balanced_.data();
    return args;
  }
  mb::BackwardArgs backward_args() {
    mb::BackwardArgs args;
    args.logits = mb::ConstAnyMatrix{logits_.data(), inputs_.logits_type, inputs_.tokens, inputs_.experts,
                                     inputs_.experts + inputs_.row_padding};
    args.experts = mb::MatrixView<const std::int32_t>{experts_view()};
    if (!inputs_.grad_weights.empty()) {
      args.grad_weights =
          mb::ConstAnyMatrix{grad_weights_.data(), inputs_.weights_type, inputs_.tokens, k_, k_ + inputs_.row_padding};
    }
    args.grad_logits = mb::AnyMatrix{grad_logits_.data(), inputs_.grad_type, inputs_.tokens, inputs_.experts,
                                     inputs_.experts + inputs_.row_padding};
    args.saved = saved();
    args.active = active_.data();
    args.balanced = balanced_.data();
    args.sequences = sequences();
    args.tokens_on_device = inputs_.tokens_on_device >= 0 ? tokens_on_device_.data() : nullptr;
    args.grad_loss = inputs_.grad_loss ? grad_loss_.data() : nullptr;
    args.loss_scale = inputs_.loss_scale;
    return args;
  }
  mb::LossArgs loss_args() {
    mb::LossArgs args;
    args.saved = saved();
    args.experts = inputs_.experts;
    args.sequences = sequences();
    args.value = loss_.data();
    args.part_values = inputs_.loss_parts > 0 ? parts_.data() : nullptr;
    return args;
  }

  Outcome outcome() {
    engine_.wait();
    Outcome result;
    const Bytes ids = dense(experts_.values(), mb::DataType::float32, k_, result.padding_untouched);
    for (std::size_t i = 0; i < ids.size() / 4; ++i) result.experts.push_back(element<std::int32_t>(ids, i));
    result.weights_bytes = dense(weights_.values(), inputs_.weights_type, k_, result.padding_untouched);
    result.weights = decoded(inputs_.weights_type, result.weights_bytes);
    result.grad_bytes = dense(grad_logits_.values(), inputs_.grad_type, inputs_.experts, result.padding_untouched);
    result.grad_logits = decoded(inputs_.grad_type, result.grad_bytes);
    result.counts = counts_.values();
    result.load = load_.values();
    result.bias = bias_.values();
    result.loss = loss_.values()[0];
    result.parts = parts_.values();
    result.saved = saved_.values();
    const std::vector<std::int64_t> status = status_.values();
    result.status = mb::Status{status[0], status[1], status[2], status[3]};
    return result;
  }

 private:
  /// Of what no call may take for its own.
  static std::vector<std::max_align_t> poisoned_workspace(std::size_t bytes) {
    std::vector<std::max_align_t> result((bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t));
    if (!result.empty()) std::memset(static_cast<void*>(result.data()), 0x4d, result.size() * sizeof(std::max_align_t));
    return result;
  }
  std::size_t padding_bytes(mb::DataType type) const {
    return static_cast<std::size_t>(inputs_.row_padding) * mb::size_of(type);
  }
  static std::size_t row_bytes(mb::DataType type, int columns) {
    return static_cast<std::size_t>(columns) * mb::size_of(type);
  }
  Bytes spread(const Bytes& dense_bytes, mb::DataType type, int columns) const {
    return with_row_padding(dense_bytes, row_bytes(type, columns), padding_bytes(type));
  }
  Bytes dense(const Bytes& spread_bytes, mb::DataType type, int columns, bool& untouched) const {
    return without_row_padding(spread_bytes, row_bytes(type, columns), padding_bytes(type), untouched);
  }
  Bytes poisoned(mb::DataType type, int columns) const {
    return Bytes(static_cast<std::size_t>(inputs_.tokens) * (row_bytes(type, columns) + padding_bytes(type)), poison);
  }
  mb::MatrixView<std::int32_t> experts_view() {
    return {reinterpret_cast<std::int32_t*>(experts_.data()), inputs_.tokens, k_, k_ + inputs_.row_padding};
  }
  mb::Sequences sequences() { return {inputs_.sequences, inputs_.layout, offsets_.data()}; }

  template <class Args>
  void fill_selection(Args& args) {
    args.logits = mb::ConstAnyMatrix{logits_.data(), inputs_.logits_type, inputs_.tokens, inputs_.experts,
                                     inputs_.experts + inputs_.row_padding};
    args.experts = experts_view();
    args.weights = mb::AnyMatrix{weights_.data(), inputs_.weights_type, inputs_.tokens, k_, k_ + inputs_.row_padding};
    args.counts = counts_.data();
    if (!inputs_.bias.empty()) args.bias = mb::BiasRef{bias_.data(), inputs_.experts};
    args.active = active_.data();
    if (replays_ && (!inputs_.replay_experts.empty() || inputs_.tokens == 0)) {
      args.replay.experts = mb::MatrixView<const std::int32_t>{replay_experts_.data(), inputs_.tokens, k_};
      args.replay.tokens = replay_tokens_.data();
    }
    args.status = reinterpret_cast<mb::Status*>(status_.data());
    args.tokens_on_device = inputs_.tokens_on_device >= 0 ? tokens_on_device_.data() : nullptr;
  }

  Engine engine_;
  Inputs inputs_;
  int k_;
  bool replays_;
  Array<std::uint8_t> logits_, experts_, weights_, grad_logits_, grad_weights_;
  Array<std::int64_t> counts_;
  Array<float> bias_;
  Array<std::int64_t> load_;
  Array<std::uint8_t> active_, balanced_;
  Array<std::int32_t> replay_experts_;
  Array<std::uint8_t> replay_tokens_;
  Array<std::int64_t> offsets_, tokens_on_device_;
  Array<float> grad_loss_, loss_, parts_;
  Array<std::int64_t> status_;
  Array<std::max_align_t> workspace_;
  std::size_t workspace_bytes_;
  Array<std::int64_t> saved_;
  std::size_t saved_bytes_;
};

inline mb::Shape shape_of(const Inputs& inputs) {
  return mb::Shape{.tokens = inputs.tokens, .experts = inputs.experts, .sequences = inputs.sequences};
}

template <class Engine, class Router>
Memory<Engine> memory_for(const Engine& engine, const Router& router, const Inputs& inputs) {
  const mb::Shape shape = shape_of(inputs);
  return Memory<Engine>(engine, inputs, Router::k, router.workspace_bytes(shape), router.saved_bytes(shape),
                        mb::is_replaying<decltype(router.top_k)>);
}

/// route only.
template <class Engine, class Router>
Outcome route(const Engine& engine, const Router& router, Inputs inputs) {
  inputs.backward = false;
  Memory<Engine> memory = memory_for(engine, router, inputs);
  router.route(memory.route_args(), memory.workspace(), engine.place());
  return memory.outcome();
}

/// forward, loss where the balancer has one, backward unless left out.
template <class Engine, class Router>
Outcome train(const Engine& engine, const Router& router, const Inputs& inputs) {
  Memory<Engine> memory = memory_for(engine, router, inputs);
  router.forward(memory.forward_args(), memory.workspace(), engine.place());
  if constexpr (Router::loss_count > 0) router.loss(memory.loss_args(), memory.workspace(), engine.place());
  if (inputs.backward) router.backward(memory.backward_args(), memory.workspace(), engine.place());
  return memory.outcome();
}

}  // namespace testing
