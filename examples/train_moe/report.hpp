// The files and the table that remain when the job is done.
#pragma once

#include "options.hpp"
#include "results.hpp"

#include <filesystem>
#include <fstream>
#include <mutex>

namespace train_moe {

/// steps.csv, written while training goes on, so that nothing is lost whatever happens.
class StepsFile {
 public:
  /// Throws UserError when the file cannot be written.
  StepsFile(const std::filesystem::path& folder, const Options& options);
  /// May be called by several runs at the same time.
  void add(const std::string& balancer, const StepRecord& record);

 private:
  std::mutex mutex_;
  std::ofstream file_;
};

/// Makes the folder if need be; throws UserError when it cannot.
void make_output_folder(const std::filesystem::path& folder);

/// The final table as text.
[[nodiscard]] std::string table_of(const std::vector<RunResult>& runs);

/// table.txt and shares.csv (share of each domain's tokens that each expert gets, on held-out bytes).
void write_results(const std::vector<RunResult>& runs, const std::filesystem::path& folder);

}  // namespace train_moe
