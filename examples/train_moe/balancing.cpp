#include "balancing.hpp"

#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

namespace train_moe {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A micro-batch has hundreds of tokens and a few experts: starting threads would take longer than routing it.
constexpr mb::Host place{.threads = 1};

AnyRouter make_router(BalancerKind kind, double coefficient, double bias_rate) {
  const auto a = static_cast<float>(coefficient);
  const mb::TopK<experts_per_token> top_k{};
  switch (kind) {
    case BalancerKind::micro_batch:
      return mb::Router{mb::Softmax{}, top_k, mb::AuxLoss{.coefficient = a}};
    case BalancerKind::global_batch:
      return mb::Router{mb::Softmax{}, top_k, mb::GlobalBatchLoss{.coefficient = a}};
    case BalancerKind::loss_free:
      return mb::Router{mb::Sigmoid{}, top_k, mb::LossFreeBias{.update_rate = static_cast<float>(bias_rate)}};
    case BalancerKind::none:
      break;
  }
  return mb::Router{mb::Softmax{}, top_k, mb::NoBalancer{}};
}

template <class Element>
mb::MatrixView<Element> view(const Tensor& matrix) {
  return {matrix.data_ptr<std::remove_const_t<Element>>(), matrix.size(0), matrix.size(1), matrix.stride(0)};
}

mb::Shape shape_of(const Tensor& logits) {
  return {.tokens = logits.size(0), .experts = static_cast<int>(logits.size(1))};
}

/// Uninitialised memory from torch's allocator, aligned well beyond what Router asks for.
Tensor bytes(std::size_t size) {
  return torch::empty({static_cast<std::int64_t>(size)}, torch::kByte);
}

mb::Workspace workspace_of(const Tensor& memory) {
  return {memory.data_ptr(), static_cast<std::size_t>(memory.numel())};
}
mb::SavedRef saved_of(const Tensor& memory) {
  return {memory.data_ptr(), static_cast<std::size_t>(memory.numel())};
}

/// What a forward call needs beside the logits. A capsule of it travels to backward, because the context keeps only values
/// that torch knows.
struct LayerRouting : torch::CustomClassHolder {
  AnyRouter router;
  mb::BiasRef bias;
  mb::LoadRef load;
  ExpertCounts counts;
};

template <class Router>
void forward_with(const Router& router, LayerRouting& routing, const Tensor& logits, const Tensor& experts,
                  const Tensor& weights, const Tensor& saved, const Tensor& loss) {
  const Tensor memory = bytes(router.workspace_bytes(shape_of(logits)));
  router.forward(mb::ForwardArgs{.logits = view<const float>(logits),
                                 .experts = view<std::int32_t>(experts),
                                 .weights = view<float>(weights),
                                 .counts = routing.counts.data(),
                                 .bias = routing.bias,
                                 .load = routing.load,
                                 .saved = saved_of(saved)},
                 workspace_of(memory), place);
  if constexpr (Router::loss_count > 0) {
    router.loss(mb::LossArgs{.saved = saved_of(saved), .experts = routing.bias.experts, .value = loss.data_ptr<float>()},
                workspace_of(memory), place);
  }
}

/// (experts, weights, loss) of logits; gradients flow to the logits from the weights and from the loss.
class RouterFunction : public torch::autograd::Function<RouterFunction> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& logits,
                               const c10::intrusive_ptr<LayerRouting>& routing) {
    const mb::Shape shape = shape_of(logits);
    const Tensor experts = torch::empty({shape.tokens, experts_per_token}, torch::kInt32);
    const Tensor weights = torch::empty({shape.tokens, experts_per_token}, torch::kFloat32);
    const Tensor loss = torch::zeros({1});
    const Tensor saved = bytes(std::visit([&](const auto& router) { return router.saved_bytes(shape); }, routing->router));
    std::visit([&](const auto& router) { forward_with(router, *routing, logits, experts, weights, saved, loss); },
               routing->router);
    context->save_for_backward({logits, experts, saved});
    context->saved_data["routing"] = c10::IValue::make_capsule(routing);
    context->mark_non_differentiable({experts});
    return {experts, weights, loss};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list kept = context->get_saved_variables();
    const auto routing = c10::static_intrusive_pointer_cast<LayerRouting>(context->saved_data["routing"].toCapsule());
    const Tensor grad_weights = gradients[1].contiguous();
    const Tensor grad_loss = gradients[2].contiguous();
    const Tensor grad_logits = torch::empty_like(kept[0]);
    std::visit([&](const auto& router) { backward_with(router, kept, grad_weights, grad_loss, grad_logits); },
               routing->router);
    return {grad_logits, Tensor()};
  }

 private:
  template <class Router>
  static void backward_with(const Router& router, const variable_list& kept, const Tensor& grad_weights,
                            const Tensor& grad_loss, const Tensor& grad_logits) {
    const Tensor memory = bytes(router.workspace_bytes(shape_of(kept[0])));
    router.backward(mb::BackwardArgs{.logits = view<const float>(kept[0]),
                                     .experts = view<const std::int32_t>(kept[1]),
                                     .grad_weights = view<const float>(grad_weights),
                                     .grad_logits = view<float>(grad_logits),
                                     .saved = saved_of(kept[2]),
                                     .grad_loss = grad_loss.data_ptr<float>()},
                    workspace_of(memory), place);
  }
};

}  // namespace

Balancing::Balancing(BalancerKind kind, const Options& options)
    : kind_(kind),
      options_(options),
      bias_(options.experts, options.layers),
      load_(options.experts, options.layers),
      router_(make_router(kind, options.coefficient, options.first_bias_rate)) {}

Routed Balancing::forward(const Tensor& logits, int layer) {
  const auto routing = c10::make_intrusive<LayerRouting>();
  routing->router = router_;
  routing->bias = bias_.ref().layer(layer);
  routing->load = load_.ref().layer(layer);
  routing->counts.resize(static_cast<std::size_t>(options_.experts));
  const variable_list outputs = RouterFunction::apply(logits.contiguous(), routing);
  return {outputs[0], outputs[1], outputs[2], routing->counts};
}

Routed Balancing::route(const Tensor& logits, int layer) {
  Routed routed{.experts = torch::empty({logits.size(0), experts_per_token}, torch::kInt32),
                .weights = torch::empty({logits.size(0), experts_per_token}, torch::kFloat32),
                .loss = {},
                .counts = ExpertCounts(static_cast<std::size_t>(options_.experts))};
  const auto route_with = [&](const auto& router) {
    const Tensor memory = bytes(router.workspace_bytes(shape_of(logits)));
    router.route(mb::RouteArgs{.logits = view<const float>(logits),
                               .experts = view<std::int32_t>(routed.experts),
                               .weights = view<float>(routed.weights),
                               .counts = routed.counts.data(),
                               .bias = bias_.ref().layer(layer)},
                 workspace_of(memory), place);
  };
  std::visit(route_with, router_);
  return routed;
}

Tensor Balancing::normalised_scores(const Tensor& logits) const {
  if (kind_ != BalancerKind::loss_free) return logits.softmax(-1);
  const Tensor scores = logits.sigmoid();
  return scores / scores.sum(-1, true);
}

LayerCounts Balancing::load() const {
  LayerCounts layers;
  for (int layer = 0; layer < options_.layers; ++layer) {
    const mb::LoadRef row = load_.ref().layer(layer);
    layers.emplace_back(row.counts, row.counts + row.experts);
  }
  return layers;
}

void Balancing::end_step(double progress) {
  const mb::BiasRef bias = kind_ == BalancerKind::loss_free ? bias_.ref() : mb::BiasRef{};
  std::visit([&](const auto& router) { router.update(bias, load_.ref(), mb::Workspace{}, place); }, router_);
  // A Router is configuration: a new rate is a new router.
  const double rate = options_.first_bias_rate * std::pow(options_.last_bias_rate / options_.first_bias_rate, progress);
  router_ = make_router(kind_, options_.coefficient, rate);
}

}  // namespace train_moe
