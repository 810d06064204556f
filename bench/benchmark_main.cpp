// main of every benchmark program. Options are Google Benchmark's; `--benchmark_filter=REGEX` chooses from the full product of shapes, and
// without it a default subset runs. Exit status 77 where the benchmarks cannot run (no GPU).
#include "registry.hpp"

#include <cstdio>
#include <cstring>
#include <ctime>
#include <string>

namespace {

[[nodiscard]] bool has_filter(int argc, char** argv) {
  constexpr const char* option = "--benchmark_filter=";
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], option, std::strlen(option)) == 0) return true;
  }
  return false;
}

/// "benchmark OPTIONS": the program's name without its folder.
[[nodiscard]] std::string command_of(int argc, char** argv) {
  std::string command = argv[0];
  command = command.substr(command.rfind('/') + 1);
  for (int i = 1; i < argc; ++i) command += std::string(" ") + argv[i];
  return command;
}

[[nodiscard]] std::string today() {
  const std::time_t now = std::time(nullptr);
  char text[16] = "";
  std::strftime(text, sizeof text, "%Y-%m-%d", std::gmtime(&now));
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  const bool filtered = has_filter(argc, argv);
  const std::string command = command_of(argc, argv);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  const microbenchmark::Machine machine = microbenchmark::registry().machine();
  if (!machine.unavailable.empty()) {
    std::printf("SKIPPED: %s\n", machine.unavailable.c_str());
    return 77;
  }
  benchmark::AddCustomContext("command", command);
  benchmark::AddCustomContext("day", today());
  for (const auto& [key, value] : machine.description) benchmark::AddCustomContext(key, value);
  for (const microbenchmark::Case& one : microbenchmark::registry().cases) {
    if (filtered || one.by_default) one.configure(benchmark::RegisterBenchmark(one.name.c_str(), one.run));
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
