#include "options.hpp"

#include "user_error.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <string_view>

namespace train_moe {
namespace {

struct BalancerName {
  BalancerKind kind;
  const char* name;
};

constexpr std::array<BalancerName, 4> balancer_names{{{BalancerKind::none, "none"},
                                                      {BalancerKind::micro_batch, "micro-batch"},
                                                      {BalancerKind::global_batch, "global-batch"},
                                                      {BalancerKind::loss_free, "loss-free"}}};

/// One option: how it is written, what --help says, what it does with its value.
struct Option {
  std::string name;
  std::string value;
  std::string help;
  std::function<void(Options&, const std::string&)> apply;
};

[[noreturn]] void refuse(const std::string& name, const std::string& value, const std::string& allowed) {
  throw UsageError(name + " is '" + value + "'; allowed: " + allowed);
}

template <class Number>
Number parse_number(const std::string& name, const std::string& text, Number low, Number high, const char* kind) {
  Number number{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || stop != end || !(number >= low && number <= high)) {
    std::string range = std::to_string(low) + " to " + std::to_string(high);
    refuse(name, text, std::string(kind) + " from " + range);
  }
  return number;
}

template <class Number>
Option number_option(const char* name, Number Options::*field, Number low, Number high, std::string help) {
  const bool whole = std::is_integral_v<Number>;
  const auto apply = [=](Options& options, const std::string& text) {
    options.*field = parse_number<Number>(name, text, low, high, whole ? "a whole number" : "a number");
  };
  return {name, whole ? "N" : "X", std::move(help), apply};
}

bool is_plain_name(const std::string& name) {
  const auto plain = [](char c) {
    return static_cast<unsigned char>(c) > ' ' && std::string_view(",\"'\\").find(c) == std::string_view::npos;
  };
  return !name.empty() && std::all_of(name.begin(), name.end(), plain);
}

void add_domain(Options& options, const std::string& text) {
  const std::size_t equals = text.find('=');
  const std::string name = text.substr(0, equals);
  if (equals == std::string::npos || equals + 1 == text.size() || !is_plain_name(name)) {
    refuse("--domain", text, "name=path, the name without spaces, commas and quotes");
  }
  const auto same = [&](const NamedFolder& other) { return other.name == name; };
  if (std::any_of(options.domains.begin(), options.domains.end(), same)) refuse("--domain", text, "each name once");
  options.domains.push_back({name, text.substr(equals + 1)});
}

void add_balancer(Options& options, const std::string& text) {
  for (const BalancerName& entry : balancer_names) {
    if (text != entry.name) continue;
    if (std::count(options.balancers.begin(), options.balancers.end(), entry.kind) > 0) {
      refuse("--balancer", text, "each balancer once");
    }
    options.balancers.push_back(entry.kind);
    return;
  }
  refuse("--balancer", text, "none, micro-batch, global-batch, loss-free");
}

void set_output(Options& options, const std::string& text) {
  if (text.empty()) refuse("--output", text, "the path of a folder");
  options.output = text;
}

const std::vector<Option>& all_options() {
  static const std::vector<Option> options{
      {"--domain", "NAME=PATH",
       "text of one domain: a folder or a file; repeat it (default: C++ headers, Python\n"
       "sources and manual pages in English, German and French of this machine)",
       add_domain},
      {"--balancer", "NAME", "none, micro-batch, global-batch or loss-free; repeat it (default: all four)", add_balancer},
      {"--output", "FOLDER", "where the results go (default: train_moe_results)", set_output},
      number_option("--steps", &Options::steps, 1, 1'000'000, "optimizer steps of each run (default: 600)"),
      number_option<std::uint64_t>("--seed", &Options::seed, 0, 1'000'000'000, "of parameters and data (default: 1)"),
      number_option("--threads", &Options::threads, 0, 1024,
                    "runs trained side by side, each on one core; 0: as many as there are\ncores (default: 0)"),
      number_option("--experts", &Options::experts, 8, 256, "experts of each layer (default: 16)"),
      number_option("--sequences", &Options::sequences, 1, 1024, "sequences of one micro-batch (default: 8)"),
      number_option("--context", &Options::context, 8, 1024, "bytes of one sequence (default: 64)"),
      number_option<std::int64_t>("--bytes", &Options::bytes, 4096, 1'000'000'000,
                                  "read at most so much of each domain (default: 1500000)"),
      number_option("--coefficient", &Options::coefficient, 0.0, 100.0, "of the auxiliary losses (default: 0.1)"),
      number_option("--learning-rate", &Options::learning_rate, 1e-6, 1.0, "its peak (default: 0.006)"),
  };
  return options;
}

const Option& find_option(const std::string& name) {
  for (const Option& option : all_options()) {
    if (option.name == name) return option;
  }
  throw UsageError("unknown option '" + name + "'");
}

}  // namespace

const char* name_of(BalancerKind kind) {
  for (const BalancerName& entry : balancer_names) {
    if (entry.kind == kind) return entry.name;
  }
  return "?";
}

Options parse_options(int argc, const char* const* argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--help" || word == "-h") {
      options.help = true;
      return options;
    }
    const std::size_t equals = word.find('=');
    const Option& option = find_option(word.substr(0, equals));
    if (equals == std::string::npos && i + 1 == argc) throw UsageError(word + " needs a value");
    option.apply(options, equals == std::string::npos ? argv[++i] : word.substr(equals + 1));
  }
  if (options.balancers.empty()) {
    for (const BalancerName& entry : balancer_names) options.balancers.push_back(entry.kind);
  }
  return options;
}

std::string help_text() {
  constexpr std::size_t column = 24;
  std::string text =
      "Trains a small byte-level Mixture-of-Experts language model on text of several domains, once with each\n"
      "balancer from the same start, and reports how evenly the experts are used and how well the model predicts.\n\n"
      "usage: train_moe [options]\n\n";
  for (const Option& option : all_options()) {
    std::string line = "  " + option.name + " " + option.value;
    line.resize(std::max(line.size() + 1, column), ' ');
    for (const char c : option.help) {
      line += c;
      if (c == '\n') line.append(column, ' ');
    }
    text += line + "\n";
  }
  return text +
         "  --help                this text\n\nCtrl-C stops early and still writes the results; a second one ends at "
         "once.\n";
}

}  // namespace train_moe
