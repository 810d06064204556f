// Trains a small byte-level Mixture-of-Experts language model on real text, once with each balancer, and compares them.
#include "blas.hpp"
#include "options.hpp"
#include "pictures.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "text.hpp"
#include "training.hpp"
#include "user_error.hpp"

#include <moe_balance/engine/threads.hpp>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <exception>
#include <future>

namespace {

using namespace train_moe;

constexpr int exit_interrupted = 128 + SIGINT;

std::atomic<bool> stop_requested = false;
static_assert(std::atomic<bool>::is_always_lock_free);  // or the signal handler could not set it

void request_stop(int) {
  stop_requested = true;
}

/// The first Ctrl-C asks the loop to stop, a second one ends the program at once.
void install_signal_handler() {
  struct sigaction action {};
  action.sa_handler = request_stop;
  action.sa_flags = SA_RESETHAND;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

std::vector<Domain> load_and_describe(const Options& options) {
  std::vector<Domain> domains = load_domains(options);
  std::printf("text:");
  for (const Domain& domain : domains) {
    std::printf("  %s %.2f MB", domain.name.c_str(),
                1e-6 * static_cast<double>(domain.training.size() + domain.validation.size()));
  }
  std::printf(
      "  (the last tenth of each is held out)\n"
      "loss: bits per byte of the step's text; MaxVio: of the step's tokens, mean of layers\n\n");
  return domains;
}

int runs_at_once(const Options& options) {
  const int cores = options.threads > 0 ? options.threads : moe_balance::usable_cores();
  return std::clamp(cores, 1, static_cast<int>(options.balancers.size()));
}

/// Trains all runs, each on one core, as many side by side as there are threads. Empty results: runs that Ctrl-C left out.
std::vector<RunResult> train_all(const std::vector<Domain>& domains, const Options& options) {
  StepsFile steps(options.output, options);
  Progress progress(static_cast<int>(options.balancers.size()), options.steps);
  std::vector<RunResult> runs(options.balancers.size());
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t i = next++; i < runs.size() && !stop_requested; i = next++) {
      const BalancerKind kind = options.balancers[i];
      const auto after_step = [&](const StepRecord& record) {
        steps.add(name_of(kind), record);
        progress.show(name_of(kind), record);
      };
      runs[i] = train(kind, domains, options, {after_step, [] { return stop_requested.load(); }});
    }
  };
  std::vector<std::future<void>> workers;
  for (int i = 0; i < runs_at_once(options); ++i) workers.push_back(std::async(std::launch::async, work));
  for (std::future<void>& worker : workers) worker.get();
  std::erase_if(runs, [](const RunResult& run) { return run.steps.empty(); });
  return runs;
}

int run(const Options& options) {
  const std::vector<Domain> domains = load_and_describe(options);
  make_output_folder(options.output);
  install_signal_handler();
  const std::vector<RunResult> runs = train_all(domains, options);
  if (stop_requested) std::printf("stopped early: these results are of the steps done so far\n");
  write_results(runs, options.output);
  std::printf("\n%s\n", table_of(runs).c_str());
  std::printf("%s\nevery step: %s/steps.csv\n", draw_pictures(runs, options.output).c_str(), options.output.c_str());
  return stop_requested ? exit_interrupted : 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = parse_options(argc, argv);
    if (options.help) {
      std::fputs(help_text().c_str(), stdout);
      return 0;
    }
    prepare_blas(argv);
    return run(options);
  } catch (const UserError& error) {
    std::fprintf(stderr, "train_moe: %s\n", error.what());
    return error.exit_code();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "train_moe: unexpected: %s\n", error.what());
    return 3;
  }
}
