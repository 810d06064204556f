// How far the job is: one line for each run, rewritten in place on a terminal; a plain line now and then elsewhere.
#pragma once

#include "results.hpp"

#include <chrono>
#include <mutex>
#include <string>
#include <vector>

namespace train_moe {

/// May be called by several runs at the same time.
class Progress {
 public:
  /// A job of `runs` runs of `steps` steps each.
  Progress(int runs, int steps);

  void show(const std::string& balancer, const StepRecord& record);

 private:
  struct Line {
    std::string balancer;
    std::string text;
  };

  [[nodiscard]] std::string time_left() const;
  [[nodiscard]] std::string describe(const std::string& balancer, const StepRecord& record) const;
  void rewrite(const std::string& balancer, const std::string& text);

  std::mutex mutex_;
  std::chrono::steady_clock::time_point start_;
  bool terminal_;
  int steps_;
  long long all_steps_;
  long long done_ = 0;
  std::vector<Line> lines_;  ///< on the terminal, in the order in which runs began
};

}  // namespace train_moe
