// mpi_fault FAULT TIMEOUT: trains two steps on all ranks; in the third, rank 1 suffers FAULT in the middle. Every other rank must get a clear
// SyncError within TIMEOUT seconds, and again from every later call, with no bias moved; it then prints a line "survivor: ..." and ends.
// fault.sh starts it and counts the lines. FAULT: exit, raise, unwind, kill, stop, pause (fault.sh lets it go on when the others have given
// up); each with _in_update, too, which is behind the backward pass; exit_before it joins the group; diverge.
#include <moe_balance/moe_balance.hpp>
#include <moe_balance/sync/mpi.hpp>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
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
  if (fault == "raise" || fault == "unwind") throw std::runtime_error("the victim's data ran out");
  std::raise(fault == "stop" || fault == "pause" ? SIGSTOP : SIGKILL);
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

/// Ends this rank unless it got a clear SyncError in [at_least, at_most] seconds.
struct Wanted {
  int rank = 0;
  double at_least = 0;
  double at_most = 0;
  template <class Function>
  std::string error(const Function& f) const {
    const std::string name = "rank " + std::to_string(rank) + " of 4";
    const auto begin = std::chrono::steady_clock::now();
    const std::string error = error_of(f);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (error.empty()) end("failed: no error in " + name);
    if (error.find(name) == std::string::npos) end("failed: says " + error);
    if (at_least > 0 && error.find("waited") == std::string::npos) end("failed: does not say how long: " + error);
    if (seconds < at_least || seconds > at_most) end("failed: " + name + " waited " + std::to_string(seconds) + " s");
    return std::to_string(seconds) + " s, " + error;
  }
};

/// Rank 1 ends before it joins the group: the others' constructors must not wait for ever.
[[noreturn]] void join_without_victim(double timeout) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank == victim) suffer("exit");
  end("survivor: " + Wanted{rank, 0.9 * timeout, 2 * timeout + 3}.error(
                         [&] { (void)mb::MpiSync(MPI_COMM_WORLD, mb::MpiSync::Seconds(timeout)); }));
}

/// Rank 1 sums a block of another number of layers: nobody's bias moves, its own neither.
[[noreturn]] void diverge(Training& training, double timeout) {
  const mb::MpiSync& sync = training.router.sync;
  constexpr int layers = 3;
  const int own_layers = sync.rank() == victim ? layers - 1 : layers;
  mb::Bias<> bias(experts, layers);
  mb::Load<> load(experts, layers);
  for (int i = 0; i < experts * layers; ++i) load.data()[i] = i;
  const std::string error = Wanted{sync.rank(), 0, 2 * timeout + 3}.error([&] {
    training.router.update(mb::BiasRef(bias.data(), experts, own_layers), mb::LoadRef(load.data(), experts, own_layers), {},
                           mb::Host{});
  });
  for (int i = 0; i < experts * layers; ++i) {
    if (bias.data()[i] != 0.0f || load.data()[i] != i) end("failed: bias or load changed");
  }
  end((sync.rank() == victim ? "the victim, too: " : "survivor: ") + error);
}

/// Rank 1 comes back when the others have given up. It may still complete the sum that they had joined; the next one must end in an error.
[[noreturn]] void come_back(Training& training, double timeout) {
  std::printf("back\n");
  end("returned: " + Wanted{victim, 0, 2 * timeout + 3}.error([&] {
    for (int step = 0; step < 3; ++step) {
      training.backward();
      training.update();
      training.forward();
    }
  }));
}

/// Trains two steps; in the third, rank 1 suffers the fault and the others notice.
void train(std::string fault, double timeout) {
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
  if (fault == "diverge") diverge(training, timeout);
  const std::vector<float> before = training.biases();
  training.forward();
  if (updating) training.backward();
  if (sync.rank() == victim) {
    suffer(fault);
    come_back(training, timeout);
  }

  const std::string error = Wanted{sync.rank(), 0.9 * timeout, 2 * timeout + 3}.error([&] {
    if (!updating) training.backward();
    training.update();
  });
  if (training.biases() != before) end("failed: a bias moved");
  for (const auto& call : {error_of([&] { training.forward(); }), error_of([&] { training.update(); })}) {
    if (call.find("an earlier sum failed") == std::string::npos) end("failed: a later call says '" + call + "'");
  }
  if (training.biases() != before) end("failed: a bias moved later");
  end("survivor: " + error);
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  const std::string fault = argc > 1 ? argv[1] : "kill";
  const double timeout = argc > 2 ? std::strtod(argv[2], nullptr) : 1.0;
  if (fault == "exit_before") join_without_victim(timeout);
  if (fault != "unwind") {
    train(fault, timeout);
    return 1;
  }
  try {
    train(fault, timeout);
  } catch (const std::runtime_error& error) {  // rank 1, whose Sync has gone while the stack was unwound
    std::printf("caught: %s\n", error.what());
    std::fflush(stdout);
    std::this_thread::sleep_for(std::chrono::duration<double>(3 * timeout));
    std::_Exit(0);
  }
}
