#include "report.hpp"

#include "user_error.hpp"

#include <cstdarg>
#include <cstdio>
#include <system_error>

namespace train_moe {
namespace {

/// "MaxVio batch" of the table is the mean over so many last steps.
constexpr std::size_t last_steps = 50;

#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
std::string
format(const char* pattern, ...) {
  char text[256];
  std::va_list values;
  va_start(values, pattern);
  std::vsnprintf(text, sizeof text, pattern, values);
  va_end(values);
  return text;
}

std::ofstream open(const std::filesystem::path& path) {
  std::ofstream file(path);
  if (!file) throw UserError("cannot write " + path.string());
  return file;
}

/// Mean over the last steps of a number of each.
template <class Value>
double recent_mean(const RunResult& run, Value value) {
  const std::size_t count = std::min(run.steps.size(), last_steps);
  double sum = 0;
  for (std::size_t i = run.steps.size() - count; i < run.steps.size(); ++i) sum += value(run.steps[i]);
  return count == 0 ? 0 : sum / static_cast<double>(count);
}

/// Mean over domains of a number of each.
template <class Value>
double mean_of_domains(const RunResult& run, Value value) {
  double sum = 0;
  for (const DomainResult& domain : run.domains) sum += value(domain);
  return run.domains.empty() ? 0 : sum / static_cast<double>(run.domains.size());
}

double busiest_of(const DomainResult& domain) {
  return mean_of_layers(domain.counts, [](const ExpertCounts& counts) { return busiest_share(counts, experts_per_token); });
}

int column_width(const std::string& name) {
  return static_cast<int>(std::max<std::size_t>(name.size(), 6)) + 2;
}

std::string header(const RunResult& run) {
  int shares_width = 0;
  for (const DomainResult& domain : run.domains) shares_width += column_width(domain.name);
  const auto experts = static_cast<double>(run.domains.front().counts.front().size());
  const std::string shares = format("busiest expert's share of a domain's tokens (even: %.3f)", experts_per_token / experts);
  const int width = std::max(shares_width, static_cast<int>(shares.size()) + 2);
  std::string text =
      format("%-13s %10s %9s %9s %12s%*s %8s %7s\n%-13s %10s %9s %9s %12s", "balancer", "validation", "MaxVio", "MaxVio",
             "MaxVio", width, shares.c_str(), "KL from", "top-4", "", "bits/byte", "global", "batch", "micro-batch");
  text.append(static_cast<std::size_t>(width - shares_width), ' ');
  for (const DomainResult& domain : run.domains) text += format("%*s", column_width(domain.name), domain.name.c_str());
  return text + format(" %8s %7s\n", "even", "mass");
}

std::string row(const RunResult& run, std::size_t shares_column) {
  std::string text = format("%-13s %10.3f %9.3f %9.3f %12.3f", run.balancer.c_str(), validation_bits_per_byte(run),
                            global_max_vio(run), recent_mean(run, mean_max_vio),
                            recent_mean(run, [](const StepRecord& record) { return record.micro_max_vio; }));
  text.resize(std::max(text.size(), shares_column), ' ');
  for (const DomainResult& domain : run.domains) text += format("%*.3f", column_width(domain.name), busiest_of(domain));
  const auto divergence = [](const DomainResult& domain) { return mean_of_layers(domain.counts, divergence_from_uniform); };
  const auto top_mass = [](const DomainResult& domain) { return domain.top_mass; };
  return text + format(" %8.3f %7.3f\n", mean_of_domains(run, divergence), mean_of_domains(run, top_mass));
}

void write_shares(const std::vector<RunResult>& runs, std::ofstream file) {
  file << "balancer,layer,domain,expert,share\n";
  for (const RunResult& run : runs) {
    for (const DomainResult& domain : run.domains) {
      for (std::size_t layer = 0; layer < domain.counts.size(); ++layer) {
        const std::vector<double> shares = token_shares(domain.counts[layer], experts_per_token);
        for (std::size_t expert = 0; expert < shares.size(); ++expert) {
          file << run.balancer << ',' << layer + 1 << ',' << domain.name << ',' << expert << ','
               << format("%.6f", shares[expert]) << '\n';
        }
      }
    }
  }
}

}  // namespace

void make_output_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (!std::filesystem::is_directory(folder)) {
    throw UserError("cannot make the output folder " + folder.string() + (error ? ": " + error.message() : ""));
  }
}

StepsFile::StepsFile(const std::filesystem::path& folder, const Options& options) : file_(open(folder / "steps.csv")) {
  file_ << "balancer,step,bits_per_byte,balancing_loss,max_vio";
  for (int layer = 1; layer <= options.layers; ++layer) file_ << ",max_vio_layer_" << layer;
  file_ << ",micro_batch_max_vio,tokens_per_second,seconds" << std::endl;
}

void StepsFile::add(const std::string& balancer, const StepRecord& record) {
  const std::lock_guard lock(mutex_);
  file_ << balancer << ',' << record.step << ','
        << format("%.6f,%.6f,%.6f", record.bits_per_byte, record.balancing_loss, mean_max_vio(record));
  for (const double value : record.max_vio) file_ << format(",%.6f", value);
  file_ << format(",%.6f,%.0f,%.3f", record.micro_max_vio, record.tokens_per_second, record.seconds) << std::endl;
}

std::string table_of(const std::vector<RunResult>& runs) {
  if (runs.empty()) return "no run has finished a step: no results\n";
  std::string text = header(runs.front());
  const std::size_t first_line = text.find('\n') + 1;
  const std::size_t shares_column = text.find(runs.front().domains.front().name, first_line) +
                                    runs.front().domains.front().name.size() - first_line -
                                    static_cast<std::size_t>(column_width(runs.front().domains.front().name));
  for (const RunResult& run : runs) text += row(run, shares_column);
  text += format(
      "MaxVio = (largest - mean) / mean of tokens per expert, mean of layers. global: all held-out bytes; batch: a step's\n"
      "micro-batches together; micro-batch: each alone (both: mean of the last %zu steps).",
      last_steps);
  return text +
         " KL: each domain's shares from\nan even use, in nats. top-4 mass: normalised score held by the chosen experts. "
         "Shares, KL and mass: held-out bytes.\n";
}

void write_results(const std::vector<RunResult>& runs, const std::filesystem::path& folder) {
  open(folder / "table.txt") << table_of(runs);
  write_shares(runs, open(folder / "shares.csv"));
}

}  // namespace train_moe
