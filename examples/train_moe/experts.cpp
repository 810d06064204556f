#include "experts.hpp"

#include <torch/csrc/autograd/custom_function.h>

namespace train_moe {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Rows in another order. Written out because the gradient of index_select adds row by row, which is slow, while the
/// gradient of a permutation is the inverse permutation.
class Permute : public torch::autograd::Function<Permute> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& rows, const Tensor& order, const Tensor& inverse) {
    context->save_for_backward({inverse});
    return rows.index_select(0, order);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    return {gradients[0].index_select(0, context->get_saved_variables()[0]), Tensor(), Tensor()};
  }
};

/// Calls visit(e, first row, rows) for each expert that has rows.
template <class Visit>
void for_each_group(const std::vector<std::int64_t>& offsets, Visit visit) {
  for (std::size_t e = 0; e + 1 < offsets.size(); ++e) {
    const std::int64_t rows = offsets[e + 1] - offsets[e];
    if (rows > 0) visit(static_cast<std::int64_t>(e), offsets[e], rows);
  }
}

class GroupedLinear : public torch::autograd::Function<GroupedLinear> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& rows, const Tensor& weights,
                        const std::vector<std::int64_t>& offsets) {
    context->save_for_backward({rows, weights});
    context->saved_data["offsets"] = offsets;
    const Tensor result = torch::empty({rows.size(0), weights.size(2)}, rows.options());
    for_each_group(offsets, [&](std::int64_t e, std::int64_t first, std::int64_t count) {
      Tensor out = result.narrow(0, first, count);
      torch::mm_out(out, rows.narrow(0, first, count), weights.select(0, e));
    });
    return result;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list kept = context->get_saved_variables();
    const Tensor gradient = gradients[0].contiguous();
    const Tensor grad_rows = torch::empty_like(kept[0]);
    const Tensor grad_weights = torch::zeros_like(kept[1]);
    for_each_group(context->saved_data["offsets"].toIntVector(),
                   [&](std::int64_t e, std::int64_t first, std::int64_t count) {
                     const Tensor part = gradient.narrow(0, first, count);
                     Tensor grad_rows_part = grad_rows.narrow(0, first, count);
                     Tensor grad_weights_part = grad_weights.select(0, e);
                     torch::mm_out(grad_rows_part, part, kept[1].select(0, e).t());
                     torch::mm_out(grad_weights_part, kept[0].narrow(0, first, count).t(), part);
                   });
    return {grad_rows, grad_weights, Tensor()};
  }
};

}  // namespace

SlotOrder::SlotOrder(const Tensor& experts, const ExpertCounts& counts) : slots_per_token_(experts.size(1)), offsets_{0} {
  for (const std::int64_t count : counts) offsets_.push_back(offsets_.back() + count);
  slot_of_row_ = torch::empty({experts.numel()}, torch::kInt64);
  row_of_slot_ = torch::empty({experts.numel()}, torch::kInt64);
  std::vector<std::int64_t> next = offsets_;
  const std::int32_t* expert = experts.data_ptr<std::int32_t>();
  for (std::int64_t slot = 0; slot < experts.numel(); ++slot) {
    const std::int64_t row = next[static_cast<std::size_t>(expert[slot])]++;
    slot_of_row_.data_ptr<std::int64_t>()[row] = slot;
    row_of_slot_.data_ptr<std::int64_t>()[slot] = row;
  }
}

Tensor SlotOrder::dispatch(const Tensor& tokens) const {
  const std::int64_t count = tokens.size(0), width = tokens.size(1);
  const Tensor slots = tokens.unsqueeze(1).expand({count, slots_per_token_, width}).reshape({-1, width});
  return Permute::apply(slots, slot_of_row_, row_of_slot_);
}

Tensor SlotOrder::combine(const Tensor& rows, const Tensor& weights) const {
  const Tensor slots = Permute::apply(rows, row_of_slot_, slot_of_row_).view({-1, slots_per_token_, rows.size(1)});
  return torch::bmm(weights.unsqueeze(1), slots).squeeze(1);
}

Tensor grouped_linear(const Tensor& rows, const Tensor& weights, const std::vector<std::int64_t>& offsets) {
  return GroupedLinear::apply(rows, weights, offsets);
}

}  // namespace train_moe
