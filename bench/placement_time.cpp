// How long place_experts takes: a fresh placement, and one that follows it with up to P / 4 and with any number of moves. CPU seconds of one call.
// g++ -std=c++20 -O2 -Iinclude bench/placement_time.cpp && ./a.out
#include <moe_balance/moe_balance.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <random>
#include <vector>

namespace {

namespace mb = moe_balance;

using Counts = std::vector<std::int64_t>;

/// Each count times a log-normal factor.
Counts spread(const Counts& counts, double deviation, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  Counts result;
  for (const std::int64_t count : counts)
    result.push_back(static_cast<std::int64_t>(static_cast<double>(count) * std::exp(deviation * normal(random))));
  return result;
}

double seconds(const mb::PlacementArgs& args, mb::Placement& placement) {
  const std::clock_t start = std::clock();
  placement = mb::place_experts(args);
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

}  // namespace

int main() {
  std::printf("experts ranks places    fresh  P/4 moves  any moves\n");
  const int shapes[][3] = {{256, 32, 288},    {256, 8, 512},     {256, 8, 1024},  {256, 64, 1024}, {512, 128, 768},
                           {1024, 128, 1280}, {1024, 256, 2048}, {256, 8, 4096},  {64, 64, 4096},  {2048, 64, 4096},
                           {4000, 8, 4096},   {4000, 512, 4096}, {256, 512, 4096}};
  for (const auto& [experts, ranks, places] : shapes) {
    std::mt19937_64 random(5);
    const Counts before = spread(Counts(static_cast<std::size_t>(experts), 1000), 1.0, random);
    const Counts after = spread(before, 0.5, random);
    mb::Placement old;
    mb::Placement next;
    mb::PlacementArgs args{.counts = {before.data(), experts}, .physical_experts = places, .ranks = ranks};
    const double fresh = seconds(args, old);
    args.counts = {after.data(), experts};
    args.previous = {old.logical_of_physical.data(), places};
    const double any = seconds(args, next);
    args.most_moves = places / 4;
    const double bounded = seconds(args, next);
    std::printf("%7d %5d %6d  %7.4f    %7.4f    %7.4f\n", experts, ranks, places, fresh, bounded, any);
  }
}
