#include "progress.hpp"

#include <algorithm>
#include <cstdio>

#include <unistd.h>

namespace train_moe {
namespace {

constexpr int plain_lines_per_run = 10;

}  // namespace

Progress::Progress(int runs, int steps)
    : start_(std::chrono::steady_clock::now()),
      terminal_(isatty(STDOUT_FILENO) == 1),
      steps_(steps),
      all_steps_(static_cast<long long>(runs) * steps) {}

void Progress::show(const std::string& balancer, const StepRecord& record) {
  const std::lock_guard lock(mutex_);
  ++done_;
  const int interval = std::max(1, steps_ / plain_lines_per_run);
  if (terminal_) {
    rewrite(balancer, describe(balancer, record));
  } else if (record.step % interval == 0 || record.step == 1 || record.step == steps_) {
    std::printf("%s\n", describe(balancer, record).c_str());
  }
  std::fflush(stdout);
}

std::string Progress::time_left() const {
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const auto left = static_cast<long long>(seconds / static_cast<double>(done_) * static_cast<double>(all_steps_ - done_));
  char text[32];
  std::snprintf(text, sizeof text, "%lld:%02lld", left / 60, left % 60);
  return text;
}

/// Fits into 80 columns.
std::string Progress::describe(const std::string& balancer, const StepRecord& record) const {
  char text[160];
  std::snprintf(text, sizeof text, "%-12s step %4d/%d  loss %.3f  MaxVio %.3f  %5.0f tokens/s  %s left", balancer.c_str(),
                record.step, steps_, record.bits_per_byte, mean_max_vio(record), record.tokens_per_second,
                time_left().c_str());
  return text;
}

void Progress::rewrite(const std::string& balancer, const std::string& text) {
  if (!lines_.empty()) std::printf("\x1b[%zuA", lines_.size());  // up to the first line
  const auto same = [&](const Line& line) { return line.balancer == balancer; };
  const auto line = std::find_if(lines_.begin(), lines_.end(), same);
  if (line == lines_.end()) {
    lines_.push_back({balancer, text});
  } else {
    line->text = text;
  }
  for (const Line& each : lines_) std::printf("\r%s\x1b[K\n", each.text.c_str());
}

}  // namespace train_moe
