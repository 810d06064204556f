// mpi_fault FAULT TIMEOUT: trains two steps on all ranks; in the third, rank 1 suffers FAULT in the middle. Every other rank must get a clear
// SyncError within TIMEOUT seconds, and again from every later call, with no bias moved; it then prints a line "survivor: ..." and ends.
// fault.sh starts it and counts the lines.
#include <moe_balance/moe_balance.hpp>
#include <moe_balance/sync/mpi.hpp>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include <unistd.h>

namespace mb = moe_balance;

namespace {

constexpr int experts = 16;
constexpr int tokens = 32;
constexpr int victim = 1;

using Router = mb::Router<mb::Softmax, mb::TopK<2>, mb::Combine<mb::GlobalBatchLoss, mb::LossFreeBias>, mb::MpiSync>;

void suffer(const std::string& fault) {
  std::printf("victim: %d\n", static_cast<int>(getpid()));
  std::fflush(stdout);
  if (fault == "exit") std::_Exit(0);
  if (fault == "raise") throw std::runtime_error("the victim's data ran out");
  std::raise(fault == "stop" ? SIGSTOP : SIGKILL);
}

/// One rank's training, with all its memory.
struct Training {
  Router router;
  std::vector<float> logits = std::vector<float>(tokens * experts);
  std::vector<float> weights = std::vector<float>(tokens * 2);
  std::vector<float> gradient = std::vector<float>(tokens * experts);
  std::vector<std::int32_t> ids = std::vector<std::int32_t>(tokens * 2);
  mb::Bias<> bias{experts};
  mb::Load<> load{experts};
  mb::Saved<> saved{router, {tokens, experts}};

  explicit Training(const mb::MpiSync& sync) : router{{}, {}, mb::Combine{mb::GlobalBatchLoss{}, mb::LossFreeBias{}}, sync} {
    for (std::size_t i = 0; i < logits.size(); ++i) {
      logits[i] = static_cast<float>((i * 7919 + static_cast<std::size_t>(sync.rank()) * 31) % 101) * 0.03f;
    }
  }
  void forward() {
    router.forward({.logits = mb::MatrixView(logits.data(), tokens, experts),
                    .experts = {ids.data(), tokens, 2},
                    .weights = mb::MatrixView(weights.data(), tokens, 2),
                    .bias = bias.ref(),
                    .load = load.ref(),
                    .saved = saved.ref()},
                   {}, mb::Host{.threads = 1});
  }
  void backward() {
    router.backward({.logits = mb::MatrixView<const float>(logits.data(), tokens, experts),
                     .experts = {ids.data(), tokens, 2},
                     .grad_logits = mb::MatrixView(gradient.data(), tokens, experts),
                     .saved = saved.ref()},
                    {}, mb::Host{.threads = 1});
  }
  void update() { router.update(bias.ref(), load.ref(), {}, mb::Host{.threads = 1}); }
  [[nodiscard]] std::vector<float> biases() const { return {bias.data(), bias.data() + experts}; }
};

/// What f raises; empty when nothing.
template <class Function>
std::string error_of(const Function& f) {
  try {
    f();
  } catch (const mb::SyncError& error) {
    return error.what();
  }
  return {};
}

[[noreturn]] void end(const std::string& text) {
  std::printf("%s\n", text.c_str());
  std::fflush(stdout);
  std::_Exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  std::string fault = argc > 1 ? argv[1] : "kill";
  const double timeout = argc > 2 ? std::strtod(argv[2], nullptr) : 1.0;
  constexpr const char* in_update = "_in_update";
  const bool updating = fault.size() > std::strlen(in_update) && fault.find(in_update) != std::string::npos;
  if (updating) fault.resize(fault.find(in_update));

  Training training{mb::MpiSync(MPI_COMM_WORLD, mb::MpiSync::Seconds(timeout))};
  const mb::MpiSync& sync = training.router.sync;
  for (int step = 0; step < 2; ++step) {
    training.forward();
    training.backward();
    training.update();
  }
  const std::vector<float> before = training.biases();
  training.forward();
  if (updating) training.backward();
  if (sync.rank() == victim) suffer(fault);

  const auto begin = std::chrono::steady_clock::now();
  const std::string error = error_of([&] {
    if (!updating) training.backward();
    training.update();
  });
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const std::string name = "rank " + std::to_string(sync.rank()) + " of 4";
  if (error.empty()) end("failed: no error in " + name);
  if (error.find(name) == std::string::npos || error.find("waited") == std::string::npos) end("failed: says " + error);
  if (training.biases() != before) end("failed: a bias moved in " + name);
  if (seconds < 0.9 * timeout || seconds > 2 * timeout + 3)
    end("failed: " + name + " waited " + std::to_string(seconds) + " s");
  for (const auto& call : {error_of([&] { training.forward(); }), error_of([&] { training.update(); })}) {
    if (call.find("an earlier sum failed") == std::string::npos) end("failed: a later call says '" + call + "'");
  }
  if (training.biases() != before) end("failed: a bias moved later in " + name);
  end("survivor: " + std::to_string(seconds) + " s, " + error);
}
