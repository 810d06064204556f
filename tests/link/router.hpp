// What every file of this program includes: the routers that are compiled once.
#pragma once

#include <moe_balance/moe_balance.hpp>

#include <cstdint>
#include <vector>

namespace mb = moe_balance;

using Published = mb::presets::Mixtral<>;
using Inference = mb::Router<mb::Softmax, mb::TopK<2>>;  // has no loss, hence no call `loss`

extern template class mb::CompiledRouter<Published>;
extern template class mb::CompiledRouter<Inference>;

/// What forward made of the same logits.
struct Routed {
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  bool operator==(const Routed&) const = default;
};

template <class AnyRouter>
Routed routed_by(const AnyRouter& router) {
  constexpr std::int64_t tokens = 5;
  constexpr int experts = 64;
  std::vector<float> logits(tokens * experts);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>((i * 2654435761u) % 1000) / 250.0f - 2.0f;
  Routed result;
  result.experts.resize(tokens * AnyRouter::k);
  result.weights.resize(tokens * AnyRouter::k);
  mb::RouteArgs args;
  args.logits = mb::MatrixView(logits.data(), tokens, experts);
  args.experts = {result.experts.data(), tokens, AnyRouter::k};
  args.weights = mb::MatrixView(result.weights.data(), tokens, AnyRouter::k);
  router.route(args, {}, mb::Host{.threads = 1});
  return result;
}

Routed routed_in_other_file();
Routed routed_in_shared_object();
__attribute__((visibility("default"))) Routed routed_in_other_shared_object();
/// Raises InvalidArgument.
__attribute__((visibility("default"))) void fails_in_other_shared_object();
