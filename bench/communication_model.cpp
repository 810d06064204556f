// What the sums over ranks cost on paper: a small simulation of ring, tree and symmetric all-reduce, hop by hop, for 61 layers of 256 experts.
// Prints the table of docs/distributed.md (a test compares them). Arguments replace assumptions: communication_model [name=value]...
//
// A hop costs its latency and its bytes; a rank begins a step when it has done the one before and what it needs has come. What is
// simulated is the time from the moment that the last rank has joined: stragglers are not in it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

namespace {

/// The assumptions: times in microseconds, rates in bytes per microsecond (1000 = 1 GB/s). Of the order of NCCL's own tuning tables for its
/// low-latency protocol on NVLink and InfiniBand; replace them by what nccl-tests measures on a cluster.
std::map<std::string, double> assumptions = {
    {"launch", 7.0},             // of a collective, once
    {"nvlink_hop", 0.6},         // between GPUs of one NVLink domain
    {"network_hop", 5.0},        // between machines
    {"nvlink_rate", 150000.0},   // one GPU to the others of its domain
    {"network_rate", 25000.0},   // one GPU to the network
    {"memory_rate", 2000000.0},  // a local sum
    {"domain", 8.0},             // GPUs in an NVLink domain
    {"tokens", 4096.0},          // of a rank's micro-batch
    {"layer_flop", 1.2e9},       // of a layer's forward, for a token: 2 * 37e9 / 61
    {"flop_rate", 4.0e8},        // sustained, per microsecond: 400 TFLOP/s
};

double value_of(const std::string& name) {
  return assumptions.at(name);
}

struct Cost {
  double microseconds = 0;
  double bytes = 0;  ///< sent by the rank that sends most
};

int domain_size() {
  return static_cast<int>(value_of("domain"));
}

double hop(bool network, double bytes) {
  return network ? value_of("network_hop") + bytes / value_of("network_rate")
                 : value_of("nvlink_hop") + bytes / value_of("nvlink_rate");
}

/// Reduce-scatter, then all-gather, around a ring: 2 (N - 1) steps, in each of which every rank sends a part of 1 / N to the next. Where a domain ends
/// the link is the network. All domains do the same at the same time, so that the ranks of one stand for all.
Cost ring(int ranks, double bytes) {
  const int period = std::min(ranks, domain_size());
  const bool has_network = ranks > domain_size();
  const double part = bytes / ranks;
  std::vector<double> time(static_cast<std::size_t>(period), 0.0);
  for (int step = 0; step < 2 * (ranks - 1); ++step) {
    std::vector<double> next = time;
    for (int rank = 0; rank < period; ++rank) {
      const auto from = static_cast<std::size_t>((rank + period - 1) % period);
      const auto to = static_cast<std::size_t>(rank);
      next[to] = std::max(time[to], time[from] + hop(has_network && rank == 0, part));
    }
    time = next;
  }
  return {value_of("launch") + *std::max_element(time.begin(), time.end()), 2 * part * (ranks - 1)};
}

/// When the root of a binary tree over `count` machines has everything: a machine waits for both of its children, 2 i + 1 and 2 i + 2.
double reduced_at(int index, int count, double ready, double bytes) {
  double time = ready;
  for (const int child : {2 * index + 1, 2 * index + 2}) {
    if (child < count) time = std::max(time, reduced_at(child, count, ready, bytes) + hop(true, bytes));
  }
  return time;
}

/// Parts that the machine with most links sends: one to its parent, one to each child, and `more`.
int most_sent(int count, int more) {
  int most = 0;
  for (int i = 0; i < std::min(count, 4); ++i) {
    const int children = (2 * i + 1 < count ? 1 : 0) + (2 * i + 2 < count ? 1 : 0);
    most = std::max(most, (i > 0 ? 1 : 0) + children + more);
  }
  return most;
}

/// Up a chain in each domain, up a binary tree over the domains, and all the way back.
Cost tree(int ranks, double bytes) {
  const int chain = std::min(ranks, domain_size());
  const int domains = ranks / chain;
  const double in_domain = (chain - 1) * hop(false, bytes);
  const double up = reduced_at(0, domains, in_domain, bytes);
  return {value_of("launch") + 2 * up, most_sent(domains, chain > 1 ? 1 : 0) * bytes};
}

/// In each domain every rank writes its counts to all others through symmetric memory and sums them; where there are more domains each rank
/// takes a share of the sum through a tree over them, and a second exchange in the domain brings the shares together.
Cost symmetric(int ranks, double bytes) {
  const int members = std::min(ranks, domain_size());
  const int domains = ranks / members;
  const double gathered = bytes * (members - 1);
  const double share = bytes / members;
  double time = value_of("launch") + hop(false, gathered) + bytes * members / value_of("memory_rate");
  double sent = gathered;
  if (domains > 1) {
    time += value_of("launch") + 2 * reduced_at(0, domains, 0.0, share);
    time += value_of("launch") + hop(false, gathered / members);
    sent += most_sent(domains, members - 1) * share;
  }
  return {time, sent};
}

std::string text(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof(buffer), value < 10 ? "%.1f" : "%.0f", value);
  return buffer;
}

/// One line: what a rank sends and how long it takes, for the three ways.
void print_line(int ranks, double bytes, double hidden_for) {
  const Cost costs[] = {ring(ranks, bytes), tree(ranks, bytes), symmetric(ranks, bytes)};
  std::printf("| %d |", ranks);
  for (const Cost& cost : costs) std::printf(" %s |", text(cost.bytes / 1024).c_str());
  for (const Cost& cost : costs) {
    std::printf(cost.microseconds > hidden_for ? " **%s** |" : " %s |", text(cost.microseconds).c_str());
  }
  std::printf("\n");
}

void print_table(const char* title, double bytes, double hidden_for) {
  std::printf("%s: %s KiB, hidden for %s us.\n\n", title, text(bytes / 1024).c_str(), text(hidden_for).c_str());
  std::printf("| ranks | ring KiB | tree KiB | symmetric KiB | ring us | tree us | symmetric us |\n");
  std::printf("|--:|--:|--:|--:|--:|--:|--:|\n");
  for (int ranks = 8; ranks <= 16384; ranks *= 2) print_line(ranks, bytes, hidden_for);
  std::printf("\n");
}

bool take(const std::string& argument) {
  const std::size_t at = argument.find('=');
  if (at == std::string::npos || assumptions.count(argument.substr(0, at)) == 0) return false;
  char* end = nullptr;
  const double value = std::strtod(argument.c_str() + at + 1, &end);
  if (*end != '\0' || !(value > 0) || (argument.substr(0, at) == "domain" && (value < 1 || value > 8192))) return false;
  assumptions[argument.substr(0, at)] = value;
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (take(argv[i])) continue;
    std::fprintf(stderr, "communication_model: '%s' is no assumption; allowed: NAME=VALUE with a positive value and one of",
                 argv[i]);
    for (const auto& [name, value] : assumptions) std::fprintf(stderr, " %s", name.c_str());
    std::fprintf(stderr, "\n");
    return 2;
  }
  constexpr double layers = 61;
  constexpr double bytes_per_layer = 256 * 8;
  const double layer_forward = value_of("tokens") * value_of("layer_flop") / value_of("flop_rate");
  print_table("GlobalBatchLoss, one sum for each layer and micro-batch", bytes_per_layer, layer_forward);
  print_table("LossFreeBias, one sum for all layers and each step", layers * bytes_per_layer, 2 * layers * layer_forward);
  return 0;
}
