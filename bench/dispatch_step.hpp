// The memory of one dispatch call in a place (Host or cudaStream_t), and the call.
#pragma once

#include "step.hpp"

#include <cstddef>
#include <cstdint>
#include <string>

namespace microbenchmark {

/// What is timed. The first three move no hidden states.
enum class DispatchWork : std::uint8_t {
  permutation,
  route_and_permute,
  forward_and_permute,
  permute,
  permute_by_rows,  ///< without row_of_slot
  combine,
  combine_backward,
  combine_identity  ///< the last quarter of the experts return what they are given
};
inline constexpr DispatchWork all_dispatch_work[] = {DispatchWork::permutation,         DispatchWork::route_and_permute,
                                                     DispatchWork::forward_and_permute, DispatchWork::permute,
                                                     DispatchWork::permute_by_rows,     DispatchWork::combine,
                                                     DispatchWork::combine_backward,    DispatchWork::combine_identity};

struct DispatchProblem {
  static constexpr int k = 8;
  static constexpr std::int64_t align = 128;
  DispatchWork work = DispatchWork::permutation;
  std::int64_t tokens = 0;
  int experts = 0;
  std::int64_t hidden = 1;
  mb::DataType type = mb::DataType::float32;  ///< of hidden states; logits and weights are float32

  [[nodiscard]] bool moves_states() const { return work >= DispatchWork::permute; }
  [[nodiscard]] std::int64_t slots() const { return tokens * k; }
  /// Experts that return what they are given.
  [[nodiscard]] mb::ExpertRange identity() const {
    return work == DispatchWork::combine_identity ? mb::ExpertRange{experts - experts / 4, experts / 4} : mb::ExpertRange{};
  }

  /// "permute/bfloat16/E256/T8192/H2048", "permutation/float32/E256/T8192".
  [[nodiscard]] std::string name() const {
    constexpr const char* names[] = {"permutation",     "route_and_permute", "forward_and_permute", "permute",
                                     "permute_by_rows", "combine",           "combine_backward",    "combine_identity"};
    return std::string(names[static_cast<int>(work)]) + "/" + mb::name_of(type) + "/E" + std::to_string(experts) + "/T" +
           std::to_string(tokens) + (moves_states() ? "/H" + std::to_string(hidden) : "");
  }

  /// Bytes that the work must move: inputs read once, outputs written once. Indices have 8 bytes, ids and weights 4.
  [[nodiscard]] double bytes() const {
    const auto all_slots = static_cast<double>(slots());
    const double state = static_cast<double>(hidden) * static_cast<double>(mb::size_of(type));
    const double all_tokens = static_cast<double>(tokens);
    switch (work) {
      case DispatchWork::permutation:
        return all_slots * (4 + 8 + 8);
      case DispatchWork::route_and_permute:
      case DispatchWork::forward_and_permute:
        return all_tokens * experts * 4 + all_slots * (4 + 4 + 8 + 8);
      case DispatchWork::permute:
        return (all_tokens + all_slots) * state + all_slots * (8 + 8);
      case DispatchWork::permute_by_rows:
        return (all_tokens + all_slots) * state + all_slots * 8;
      case DispatchWork::combine:
        return (all_tokens + all_slots) * state + all_slots * (8 + 4);
      case DispatchWork::combine_backward:
        return (all_tokens + 2 * all_slots) * state + all_slots * (8 + 8 + 4 + 4);
      case DispatchWork::combine_identity:  // three quarters of the slots have rows, about
        return (2 * all_tokens + 0.75 * all_slots) * state + all_slots * (8 + 4 + 4);
    }
    return 0;
  }
};

/// Inputs and outputs of one call; the constructor fills them and enqueues a forward_and_permute, so that there are ids and rows.
template <class Place>
class DispatchStep {
 public:
  DispatchStep(const DispatchProblem& problem, std::uint64_t seed, const Place& place)
      : problem_(problem),
        rows_(mb::permutation_rows(problem.tokens, k, problem.experts, DispatchProblem::align)),
        logits_(size(problem.tokens * problem.experts), place),
        weights_(size(problem.slots()), place),
        grad_weights_(size(problem.slots()), place),
        ids_(size(problem.slots()), place),
        saved_(router, shape(), place),
        offsets_(size(problem.experts + 1), place),
        row_of_slot_(size(problem.slots()), place),
        slot_of_row_(size(rows_), place),
        workspace_(mb::route_and_permute_workspace_bytes(router, shape()), place),
        states_(state_bytes(problem.tokens), place),
        permuted_(state_bytes(rows_), place),
        grad_permuted_(problem.work == DispatchWork::combine_backward ? state_bytes(rows_) : 0, place),
        combined_(problem.work == DispatchWork::combine_identity ? state_bytes(problem.tokens) : 0, place) {
    Filler<Place>::fill(logits_.data(), mb::DataType::float32, logits_.size(), seed, place);
    Filler<Place>::fill(states_.data(), problem.type, states_.size() / mb::size_of(problem.type), seed + 1, place);
    Filler<Place>::fill(permuted_.data(), problem.type, permuted_.size() / mb::size_of(problem.type), seed + 2, place);
    forward_and_permute(place);
  }

  /// Runs (Host) or enqueues (cudaStream_t) the work once.
  void run(const Place& place) const {
    switch (problem_.work) {
      case DispatchWork::permutation:
        return mb::permutation(order(), workspace(), place);
      case DispatchWork::route_and_permute:
        return mb::route_and_permute(router, {.logits = logits(), .experts = ids(), .weights = weights()}, order(),
                                     workspace(), place);
      case DispatchWork::forward_and_permute:
        return forward_and_permute(place);
      case DispatchWork::permute:
        return mb::permute({.hidden = states(),
                            .slot_of_row = slot_of_row(),
                            .permuted = matrix(permuted_, rows_),
                            .top_k = k,
                            .row_of_slot = row_of_slot()},
                           {}, place);
      case DispatchWork::permute_by_rows:
        return mb::permute(
            {.hidden = states(), .slot_of_row = slot_of_row(), .permuted = matrix(permuted_, rows_), .top_k = k}, {}, place);
      case DispatchWork::combine:
        return mb::combine(
            {.permuted = matrix(permuted_, rows_), .row_of_slot = row_of_slot(), .combined = states(), .weights = weights()},
            {}, place);
      case DispatchWork::combine_backward:
        return mb::combine_backward({.grad_combined = states(),
                                     .row_of_slot = row_of_slot(),
                                     .slot_of_row = slot_of_row(),
                                     .grad_permuted = matrix(grad_permuted_, rows_),
                                     .weights = weights(),
                                     .permuted = matrix(permuted_, rows_),
                                     .grad_weights = mb::MatrixView(grad_weights_.data(), problem_.tokens, k)},
                                    {}, place);
      case DispatchWork::combine_identity:
        return mb::combine({.permuted = matrix(permuted_, rows_),
                            .row_of_slot = row_of_slot(),
                            .combined = matrix(combined_, problem_.tokens),
                            .weights = weights(),
                            .identity = {ids(), problem_.identity(), states(), weights()}},
                           {}, place);
    }
  }

 private:
  static constexpr std::int64_t k = DispatchProblem::k;
  static constexpr mb::Router<mb::Softmax, mb::TopK<DispatchProblem::k>, mb::AuxLoss> router{};

  [[nodiscard]] static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }
  [[nodiscard]] std::size_t state_bytes(std::int64_t rows) const {
    return problem_.moves_states() ? size(rows * problem_.hidden) * mb::size_of(problem_.type) : 0;
  }
  [[nodiscard]] mb::Shape shape() const { return {problem_.tokens, problem_.experts, 1}; }
  [[nodiscard]] mb::Workspace workspace() const { return {workspace_.data(), workspace_.bytes()}; }
  [[nodiscard]] mb::AnyMatrix matrix(const mb::Buffer<std::byte, Place>& buffer, std::int64_t rows) const {
    return {buffer.data(), problem_.type, rows, problem_.hidden, problem_.hidden};
  }
  [[nodiscard]] mb::AnyMatrix states() const { return matrix(states_, problem_.tokens); }
  [[nodiscard]] mb::MatrixView<float> logits() const { return {logits_.data(), problem_.tokens, problem_.experts}; }
  [[nodiscard]] mb::MatrixView<float> weights() const { return {weights_.data(), problem_.tokens, k}; }
  [[nodiscard]] mb::MatrixView<std::int32_t> ids() const { return {ids_.data(), problem_.tokens, k}; }
  [[nodiscard]] mb::MatrixView<std::int64_t> row_of_slot() const { return {row_of_slot_.data(), problem_.tokens, k}; }
  [[nodiscard]] mb::VectorView<std::int64_t> slot_of_row() const { return {slot_of_row_.data(), rows_}; }
  [[nodiscard]] mb::PermutationArgs order() const {
    return {.experts = ids(),
            .offsets = {offsets_.data(), problem_.experts + 1},
            .row_of_slot = row_of_slot(),
            .slot_of_row = slot_of_row(),
            .align = DispatchProblem::align,
            .zero_experts = problem_.identity()};
  }
  void forward_and_permute(const Place& place) const {
    mb::forward_and_permute(router, {.logits = logits(), .experts = ids(), .weights = weights(), .saved = saved_.ref()},
                            order(), workspace(), place);
  }

  DispatchProblem problem_;
  std::int64_t rows_;
  mb::Buffer<float, Place> logits_;
  mb::Buffer<float, Place> weights_;
  mb::Buffer<float, Place> grad_weights_;
  mb::Buffer<std::int32_t, Place> ids_;
  mb::Saved<Place> saved_;
  mb::Buffer<std::int64_t, Place> offsets_;
  mb::Buffer<std::int64_t, Place> row_of_slot_;
  mb::Buffer<std::int64_t, Place> slot_of_row_;
  mb::Buffer<std::byte, Place> workspace_;
  mb::Buffer<std::byte, Place> states_;
  mb::Buffer<std::byte, Place> permuted_;
  mb::Buffer<std::byte, Place> grad_permuted_;
  mb::Buffer<std::byte, Place> combined_;
};

}  // namespace microbenchmark
