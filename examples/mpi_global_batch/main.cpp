// Every rank trains on text of a domain of its own: C++, English, ... The micro-batch loss asks each rank's tokens, that is each domain, to use all
// experts alike; the global-batch loss asks it of all ranks together, so that experts may specialise. This program trains the same model
// with either and prints what became of it. Start it with mpirun (run.sh does).
//
//   mpi_global_batch [--steps N] [--tokens N] [--coefficient X] [--seed N] [--timeout SECONDS] [--domain NAME=PATH]...
//
// Ends with 1 when the experts are not more specialised under the global-batch loss, 2 for bad options, 3 when a rank is lost.
#include "model.hpp"
#include "text.hpp"

#include <moe_balance/sync/mpi.hpp>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace example {

struct Options {
  int steps = 300;
  int tokens = 192;
  float coefficient = 0.3f;
  std::uint64_t seed = 1;
  double timeout = 60;
  std::vector<Domain> domains;
};

/// What a training has come to; shares and losses over its last steps, the same on all ranks.
struct Outcome {
  double cross_entropy = 0;
  double micro_batch_loss = 0;
  double global_batch_loss = 0;
  std::vector<double> shares;  ///< [ranks, experts]: how a rank's assignments are spread
  double specialisation = 0;
  double max_violation = 0;
};

/// One rank.
class Rank {
 public:
  Rank(const Options& options, const mb::MpiSync& sync)
      : options_(options),
        sync_(sync),
        domain_(options.domains[static_cast<std::size_t>(sync.rank()) % options.domains.size()]),
        text_(read_domain(domain_, std::size_t{1} << 18)) {}

  template <class Balancer>
  Outcome train(const char* name, const Balancer& balancer) {
    const mb::Router router{mb::Softmax{}, mb::TopK<chosen>{}, balancer, sync_};
    const mb::Load load(experts);
    const mb::Shape shape{.tokens = options_.tokens, .experts = experts};
    const mb::Saved saved(router, shape);
    Model model(options_.seed);
    std::uint64_t stream = options_.seed + 1000 * static_cast<std::uint64_t>(sync_.rank() + 1);
    Outcome outcome;
    std::vector<std::int64_t> counts(experts), last_counts(experts);
    const int measured = std::max(1, options_.steps / 6);
    for (int step = 0; step < options_.steps; ++step) {
      const Batch batch = sample(text_, options_.tokens, stream);
      model.route(batch, logits_);
      resize(batch.tokens());
      router.forward({.logits = logits(),
                      .experts = ids(),
                      .weights = weights(),
                      .counts = counts.data(),
                      .load = load.ref(),
                      .saved = saved.ref()},
                     {}, host);
      const float cross_entropy = model.learn(batch, ids_, weights_, grad_weights_);  // the sum over ranks runs beside this
      router.backward({.logits = logits(),
                       .experts = ids(),
                       .grad_weights = matrix(grad_weights_, chosen),
                       .grad_logits = matrix(grad_logits_, experts),
                       .saved = saved.ref()},
                      {}, host);
      model.learn_routing(batch, grad_logits_);
      average(model.gradients());
      model.step(0.1f);
      router.update({}, load.ref(), {}, host);  // clears the load: a step of one micro-batch
      const bool last = step >= options_.steps - measured;
      if (last) measure(outcome, cross_entropy, measured);
      for (std::size_t e = 0; e < experts; ++e) last_counts[e] += last ? counts[e] : 0;
      if (sync_.rank() == 0 && (step + 1) % (options_.steps / 3) == 0) {
        std::printf("%-12s step %4d: %s predicts the next byte with %.2f nats\n", name, step + 1, domain_.name.c_str(),
                    static_cast<double>(cross_entropy));
      }
    }
    finish(outcome, last_counts);
    return outcome;
  }

 private:
  static constexpr mb::Host host{.threads = 1};

  void resize(int tokens) {
    const auto rows = static_cast<std::size_t>(tokens);
    ids_.resize(rows * chosen);
    weights_.resize(rows * chosen);
    grad_weights_.resize(rows * chosen);
    grad_logits_.resize(rows * experts);
  }
  mb::MatrixView<float> matrix(std::vector<float>& values, int columns) { return {values.data(), options_.tokens, columns}; }
  mb::MatrixView<float> logits() { return matrix(logits_, experts); }
  mb::MatrixView<float> weights() { return matrix(weights_, chosen); }
  mb::MatrixView<std::int32_t> ids() { return {ids_.data(), options_.tokens, chosen}; }

  /// Both losses of the present routing, whatever it was trained with: at least 1 each, 1 when balanced.
  void measure(Outcome& outcome, float cross_entropy, int steps) {
    const double part = 1.0 / steps / sync_.ranks();
    outcome.cross_entropy += part * static_cast<double>(cross_entropy);
    outcome.micro_batch_loss += part * value_of(mb::AuxLoss{.coefficient = 1.0f});
    outcome.global_batch_loss +=
        part * value_of(mb::GlobalBatchLoss{.coefficient = 1.0f, .window = mb::GlobalBatchWindow::micro_batch});
  }

  template <class Balancer>
  double value_of(const Balancer& balancer) {
    const mb::Router router{mb::Softmax{}, mb::TopK<chosen>{}, balancer, sync_};
    const mb::Saved saved(router, {.tokens = options_.tokens, .experts = experts});
    float value = 0;
    router.forward({.logits = logits(), .experts = ids(), .weights = weights(), .saved = saved.ref(), .accumulate = false},
                   {}, host);
    router.loss({.saved = saved.ref(), .experts = experts, .value = &value}, {}, host);
    return static_cast<double>(value);
  }

  /// Means over ranks of the losses, and the distance of each rank's shares from those of all ranks together.
  void finish(Outcome& outcome, const std::vector<std::int64_t>& counts) {
    double sums[] = {outcome.cross_entropy, outcome.micro_batch_loss, outcome.global_batch_loss};
    MPI_Allreduce(MPI_IN_PLACE, sums, 3, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    outcome.cross_entropy = sums[0];
    outcome.micro_batch_loss = sums[1];
    outcome.global_batch_loss = sums[2];
    const auto ranks = static_cast<std::size_t>(sync_.ranks());
    std::vector<std::int64_t> all(ranks * experts);
    MPI_Allgather(counts.data(), experts, MPI_INT64_T, all.data(), experts, MPI_INT64_T, MPI_COMM_WORLD);
    std::int64_t rank_total = 0;
    for (const std::int64_t count : counts) rank_total += count;
    std::vector<double> mean(experts, 0.0);
    for (std::size_t i = 0; i < all.size(); ++i) {
      outcome.shares.push_back(static_cast<double>(all[i]) / static_cast<double>(rank_total));
      mean[i % experts] += outcome.shares.back() / static_cast<double>(ranks);
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
      outcome.specialisation += 0.5 * std::abs(outcome.shares[i] - mean[i % experts]) / static_cast<double>(ranks);
    }
    outcome.max_violation = *std::max_element(mean.begin(), mean.end()) * experts - 1;
  }

  void average(std::vector<float>& gradients) const {
    MPI_Allreduce(MPI_IN_PLACE, gradients.data(), static_cast<int>(gradients.size()), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    for (float& gradient : gradients) gradient /= static_cast<float>(sync_.ranks());
  }

  Options options_;
  mb::MpiSync sync_;
  Domain domain_;
  std::vector<int> text_;
  std::vector<float> logits_, weights_, grad_weights_, grad_logits_;
  std::vector<std::int32_t> ids_;
};

void print(const char* name, const Outcome& outcome, const Options& options, int ranks) {
  std::printf("\ntrained with the %s loss: %.3f nats, MaxVio %.2f\n", name, outcome.cross_entropy, outcome.max_violation);
  std::printf("  micro-batch loss / coefficient  %.3f\n", outcome.micro_batch_loss);
  std::printf("  global-batch loss / coefficient %.3f\n", outcome.global_batch_loss);
  std::printf("  share of its tokens that each domain sends to each expert, in percent:\n");
  for (int rank = 0; rank < ranks; ++rank) {
    std::printf("  %-10s", options.domains[static_cast<std::size_t>(rank) % options.domains.size()].name.c_str());
    for (int e = 0; e < experts; ++e) {
      std::printf(" %5.1f", 100 * outcome.shares[static_cast<std::size_t>(rank * experts + e)]);
    }
    std::printf("\n");
  }
  std::printf("  specialisation (mean distance of a domain's shares from all domains'): %.3f\n", outcome.specialisation);
}

[[noreturn]] void fail(int code, const std::string& message) {
  std::fprintf(stderr, "mpi_global_batch: %s\n", message.c_str());
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

double number_of(const std::string& option, const std::string& text, double least, double most) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value >= least && value <= most)) {
    fail(2, option + " is '" + text + "'; allowed: " + std::to_string(least) + " to " + std::to_string(most));
  }
  return value;
}

Options options_from(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (i + 1 == argc) fail(2, "'" + option + "' needs a value; options: see the head of main.cpp");
    const std::string value = argv[++i];
    if (option == "--steps") {
      options.steps = static_cast<int>(number_of(option, value, 3, 1e6));
    } else if (option == "--tokens") {
      options.tokens = static_cast<int>(number_of(option, value, 1, 1e6));
    } else if (option == "--coefficient") {
      options.coefficient = static_cast<float>(number_of(option, value, 0, 10));
    } else if (option == "--seed") {
      options.seed = static_cast<std::uint64_t>(number_of(option, value, 0, 1e9));
    } else if (option == "--timeout") {
      options.timeout = number_of(option, value, 0.01, 1e6);
    } else if (option == "--domain" && value.find('=') != std::string::npos) {
      options.domains.push_back({value.substr(0, value.find('=')), value.substr(value.find('=') + 1)});
    } else {
      fail(2, "'" + option + " " + value + "' is no option; see the head of main.cpp");
    }
  }
  if (options.domains.empty()) fail(2, "no text: give --domain NAME=PATH once or more, one for each rank");
  return options;
}

int run(int argc, char** argv) {
  const Options options = options_from(argc, argv);
  const mb::MpiSync sync(MPI_COMM_WORLD, mb::MpiSync::Seconds(options.timeout));
  Rank rank(options, sync);
  const Outcome micro = rank.train("micro-batch", mb::AuxLoss{.coefficient = options.coefficient});
  const Outcome global = rank.train("global-batch", mb::GlobalBatchLoss{.coefficient = options.coefficient});
  if (sync.rank() == 0) {
    print("micro-batch", micro, options, sync.ranks());
    print("global-batch", global, options, sync.ranks());
    std::printf("\nspecialisation: %.3f with the micro-batch loss, %.3f with the global-batch loss\n", micro.specialisation,
                global.specialisation);
  }
  if (sync.ranks() == 1 || global.specialisation > micro.specialisation) return 0;
  if (sync.rank() == 0) std::printf("the experts are not more specialised under the global-batch loss\n");
  return 1;
}

}  // namespace example

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int code = 0;
  try {
    code = example::run(argc, argv);
  } catch (const example::mb::SyncError& error) {
    example::fail(3, error.what());
  } catch (const std::exception& error) {
    example::fail(2, error.what());
  }
  MPI_Finalize();
  return code;
}
