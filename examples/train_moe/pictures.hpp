// Two pictures, drawn by gnuplot: MaxVio over steps, and how each domain uses the experts.
#pragma once

#include "results.hpp"

#include <filesystem>
#include <string>
#include <vector>

namespace train_moe {

/// Writes data and scripts (max_vio.dat, max_vio.gp, experts.dat, experts.gp) and, where gnuplot is installed, max_vio.png
/// and experts.png. Returns one line that says what was drawn or why not.
[[nodiscard]] std::string draw_pictures(const std::vector<RunResult>& runs, const std::filesystem::path& folder);

}  // namespace train_moe
