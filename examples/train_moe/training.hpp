// One run: the same model, data and order for every balancer.
#pragma once

#include "options.hpp"
#include "results.hpp"
#include "text.hpp"

#include <functional>

namespace train_moe {

/// What a run tells while it goes on.
struct Observers {
  std::function<void(const StepRecord&)> after_step;
  std::function<bool()> should_stop;  ///< asked after every micro-batch
};

/// Trains a fresh model and evaluates it on the held-out bytes. Parameters and data depend on options.seed only. When
/// should_stop says so it stops training, drops the unfinished step and still evaluates.
[[nodiscard]] RunResult train(BalancerKind kind, const std::vector<Domain>& domains, const Options& options,
                              const Observers& observers);

}  // namespace train_moe
