// Runs every recorded case of a folder through a subject and prints what came of it. See golden/README.md for the files.
#pragma once

#include "golden_subject.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <string>
#include <vector>

namespace golden {

using Json = nlohmann::json;

/// golden/README.md: ids and counts exact; float32 values |a - b| <= absolute + relative |b|.
struct Tolerance {
  double absolute;
  double relative;

  /// No more than 4 times `relative` of the largest value: losses of small coefficients have gradients below `absolute`.
  [[nodiscard]] double absolute_for(const std::vector<double>& want) const {
    double largest = 0;
    for (const double value : want) largest = std::max(largest, std::abs(value));
    return std::min(absolute, 4 * relative * largest);
  }
};
inline constexpr Tolerance value_tolerance{2e-6, 2e-5};
inline constexpr Tolerance gradient_tolerance{5e-6, 5e-5};

/// Collects the comparisons of one case; keeps the first difference and how many values were compared.
class Comparison {
 public:
  template <class A, class B>
  void exact(const char* what, const std::vector<A>& got, const std::vector<B>& want) {
    if (!same_size(what, got.size(), want.size())) return;
    for (std::size_t i = 0; i < want.size(); ++i) {
      if (static_cast<std::int64_t>(got[i]) != static_cast<std::int64_t>(want[i])) {
        differs(what, i, std::to_string(got[i]), std::to_string(want[i]));
      }
    }
    compared_ += want.size();
  }
  void close(const char* what, const std::vector<float>& got, const std::vector<double>& want, Tolerance tolerance) {
    if (!same_size(what, got.size(), want.size())) return;
    const double absolute = tolerance.absolute_for(want);
    for (std::size_t i = 0; i < want.size(); ++i) {
      const double distance = std::abs(static_cast<double>(got[i]) - want[i]);
      if (!(distance <= absolute + tolerance.relative * std::abs(want[i]))) {
        differs(what, i, std::to_string(got[i]), std::to_string(want[i]));
      }
    }
    compared_ += want.size();
  }
  void close(const char* what, float got, double want, Tolerance tolerance) {
    close(what, std::vector<float>{got}, std::vector<double>{want}, tolerance);
  }
  const std::string& first_difference() const { return first_difference_; }
  std::size_t compared() const { return compared_; }

 private:
  bool same_size(const char* what, std::size_t got, std::size_t want) {
    if (got != want) differs(what, 0, std::to_string(got) + " values", std::to_string(want) + " values");
    return got == want;
  }
  void differs(const char* what, std::size_t index, const std::string& got, const std::string& want) {
    if (first_difference_.empty()) {
      first_difference_ = std::string(what) + "[" + std::to_string(index) + "] is " + got + ", expected " + want;
    }
  }
  std::string first_difference_;
  std::size_t compared_ = 0;
};

template <class T>
std::vector<T> array_or_empty(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? std::vector<T>{} : found->get<std::vector<T>>();
}

/// A list of rows as one list; empty where there is none.
inline std::vector<int> flattened(const Json& rows) {
  std::vector<int> result;
  for (const Json& row : rows) {
    for (const Json& value : row) result.push_back(value);
  }
  return result;
}

inline Scoring scoring_named(const std::string& name) {
  if (name == "softmax") return Scoring::softmax;
  if (name == "softmax_over_selected") return Scoring::softmax_over_selected;
  if (name == "sigmoid") return Scoring::sigmoid;
  if (name == "sqrt_softplus") return Scoring::sqrt_softplus;
  throw std::runtime_error("unknown scoring " + name);
}

/// What every kind with logits shares.
inline Task task_of(const Json& config, const Json& inputs) {
  Task task;
  task.tokens = config.at("tokens");
  task.experts = config.at("experts");
  task.k = config.value("top_k", 1);
  task.scoring = scoring_named(config.value("scoring", "softmax"));
  task.renormalise = config.value("renormalize", true);
  task.scaling_factor = config.value("scaling_factor", 1.0f);
  if (config.value("groups", 0) > 1) {
    task.groups = config.at("groups");
    task.groups_kept = config.at("groups_kept");
    task.group_score_top = config.at("group_score_top");
  }
  if (inputs.contains("logits") && inputs.at("logits").at(0).is_number())
    task.logits = inputs.at("logits").get<std::vector<float>>();
  task.bias = array_or_empty<float>(inputs, "expert_bias");
  task.active = array_or_empty<std::uint8_t>(inputs, "active");
  task.replay_tokens = array_or_empty<std::uint8_t>(inputs, "replay");
  task.replay_experts = array_or_empty<int>(inputs, "replay_experts");
  task.grad_weights = array_or_empty<float>(inputs, "grad_weights");
  for (const std::uint8_t padding : array_or_empty<std::uint8_t>(inputs, "padding")) {
    task.active.push_back(padding ? std::uint8_t{0} : std::uint8_t{1});
  }
  return task;
}

inline void compare_routing(const Answer& answer, const Json& expected, Comparison& comparison) {
  comparison.exact("experts", answer.experts, expected.at("experts").get<std::vector<int>>());
  comparison.close("weights", answer.weights, expected.at("weights").get<std::vector<double>>(), value_tolerance);
  comparison.exact("counts", answer.counts, expected.at("counts").get<std::vector<std::int64_t>>());
  if (expected.contains("grad_logits")) {
    comparison.close("grad_logits", answer.grad_logits_of_weights, expected.at("grad_logits").get<std::vector<double>>(),
                     gradient_tolerance);
  }
}

inline void route(Subject& subject, const Json& recorded, Comparison& comparison) {
  const Task task = task_of(recorded.at("config"), recorded.at("inputs"));
  compare_routing(subject.answer(task), recorded.at("expected"), comparison);
}

inline void route_and_loss(Subject& subject, const Json& recorded, Comparison& comparison) {
  const Json& config = recorded.at("config");
  const Json& expected = recorded.at("expected");
  Task task = task_of(config, recorded.at("inputs"));
  task.loss = Loss::micro_batch;
  task.coefficient = 1.0f;
  task.per_token = config.at("loss_frequency") == "per_token";
  const Answer answer = subject.answer(task);
  compare_routing(answer, expected, comparison);
  comparison.close("loss", answer.loss, expected.at("loss"), value_tolerance);
  comparison.close("loss_grad_logits", answer.grad_logits_of_loss,
                   expected.at("loss_grad_logits").get<std::vector<double>>(), gradient_tolerance);
}

/// Ids before and after replicas and shared experts, which are appended to each token's K columns.
inline void gate(Subject& subject, const Json& recorded, Comparison& comparison) {
  const Json& config = recorded.at("config");
  const Json& expected = recorded.at("expected");
  Task task = task_of(config, recorded.at("inputs"));
  task.renormalise = true;
  if (task.scoring == Scoring::softmax) task.scoring = Scoring::softmax_over_selected;
  const Answer answer = subject.answer(task);
  comparison.exact("logical_experts", answer.experts, expected.at("logical_experts").get<std::vector<int>>());
  const PlacementTask placement{.tokens = task.tokens,
                                .experts = task.experts,
                                .k = task.k,
                                .rank = config.at("expert_parallel_rank"),
                                .shared = config.value("shared_experts", 0),
                                .ids = answer.experts,
                                .weights = answer.weights,
                                .active = task.active,
                                .logical_to_physical = flattened(recorded.at("inputs").at("logical_to_physical")),
                                .replica_count = array_or_empty<int>(recorded.at("inputs"), "replica_count")};
  const PlacementAnswer placed = subject.place(placement);
  comparison.exact("experts", placed.ids, expected.at("experts").get<std::vector<int>>());
  comparison.close("weights", placed.weights, expected.at("weights").get<std::vector<double>>(), value_tolerance);
}

/// Softmax before the top-k, weights not renormalised, as these cases were recorded.
inline Task raw_probabilities(const Json& recorded) {
  Task task = task_of(recorded.at("config"), recorded.at("inputs"));
  task.renormalise = false;
  return task;
}

inline void permute(Subject& subject, const Json& recorded, Comparison& comparison) {
  const Json& expected = recorded.at("expected");
  const Task task = raw_probabilities(recorded);
  const Answer routed = subject.answer(task);
  const PermuteAnswer answer =
      subject.permute({.tokens = task.tokens,
                       .experts = task.experts,
                       .k = task.k,
                       .hidden = recorded.at("config").at("hidden"),
                       .ids = routed.experts,
                       .weights = routed.weights,
                       .hidden_states = recorded.at("inputs").at("hidden").get<std::vector<float>>()});
  std::vector<std::int64_t> token_of_row;
  std::vector<float> probability_of_row;
  for (const std::int64_t slot : answer.slot_of_row) {
    token_of_row.push_back(slot / task.k);
    probability_of_row.push_back(routed.weights.at(static_cast<std::size_t>(slot)));
  }
  comparison.exact("counts", answer.counts, expected.at("counts").get<std::vector<std::int64_t>>());
  comparison.exact("token_of_row", token_of_row, expected.at("token_of_row").get<std::vector<std::int64_t>>());
  comparison.close("permuted", answer.permuted, expected.at("permuted").get<std::vector<double>>(), value_tolerance);
  comparison.close("probability_of_row", probability_of_row, expected.at("probability_of_row").get<std::vector<double>>(),
                   value_tolerance);
  comparison.close("combined", answer.combined, expected.at("combined").get<std::vector<double>>(), value_tolerance);
}

inline void capacity(Subject& subject, const Json& recorded, Comparison& comparison) {
  const Json& config = recorded.at("config");
  const Json& expected = recorded.at("expected");
  if (config.at("policy") != "probs" || config.at("pad_to_capacity").get<bool>()) {
    throw NotOffered("no recorded case of this drop policy was known");
  }
  const Task task = raw_probabilities(recorded);
  const Answer routed = subject.answer(task);
  const CapacityAnswer answer = subject.limit({.tokens = task.tokens,
                                               .experts = task.experts,
                                               .k = task.k,
                                               .capacity_factor = config.at("capacity_factor"),
                                               .ids = routed.experts,
                                               .weights = routed.weights});
  std::vector<int> kept_map(static_cast<std::size_t>(task.tokens * task.experts), 0);
  std::vector<float> kept_probabilities(kept_map.size(), 0.0f);
  for (std::size_t slot = 0; slot < answer.ids.size(); ++slot) {
    if (answer.ids[slot] < 0) continue;
    const auto at = slot / static_cast<std::size_t>(task.k) * static_cast<std::size_t>(task.experts) +
                    static_cast<std::size_t>(answer.ids[slot]);
    kept_map[at] = 1;
    kept_probabilities[at] = answer.weights[slot];
  }
  comparison.exact("capacity", std::vector<std::int64_t>{answer.capacity}, std::vector<std::int64_t>{config.at("capacity")});
  comparison.exact("kept_map", kept_map, expected.at("kept_map").get<std::vector<int>>());
  comparison.close("kept_probabilities", kept_probabilities, expected.at("kept_probabilities").get<std::vector<double>>(),
                   value_tolerance);
  comparison.exact("kept_counts", answer.kept_counts, expected.at("kept_counts").get<std::vector<std::int64_t>>());
}

inline std::vector<std::int64_t> sum_over_sequences(const std::vector<std::int64_t>& counts, int experts) {
  std::vector<std::int64_t> sums(static_cast<std::size_t>(experts), 0);
  for (std::size_t i = 0; i < counts.size(); ++i) sums[i % sums.size()] += counts[i];
  return sums;
}

inline void balance_loss(Subject& subject, const Json& recorded, Comparison& comparison) {
  const Json& config = recorded.at("config");
  const Json& expected = recorded.at("expected");
  Task task = task_of(config, recorded.at("inputs"));
  task.coefficient = config.at("coefficient");
  task.loss = config.at("loss") == "sequence" ? Loss::sequence : Loss::micro_batch;
  task.sequences = config.value("sequences", 1);
  const Answer answer = subject.answer(task);
  const bool by_sequence = task.loss == Loss::sequence;
  const auto counts = expected.at(by_sequence ? "counts_per_sequence" : "counts").get<std::vector<std::int64_t>>();
  comparison.exact("counts", answer.counts, sum_over_sequences(counts, task.experts));
  comparison.close("loss", answer.loss, expected.at("loss"), value_tolerance);
  comparison.close("grad_logits", answer.grad_logits_of_loss, expected.at("grad_logits").get<std::vector<double>>(),
                   gradient_tolerance);
}

/// Ranks are played one after the other: before rank j's forward the load holds what the other ranks added in this micro-batch
/// and everything before it, as a Sync over ranks would have left it.
inline void fill_global_batch(Task& task, const Json& inputs, const Json& expected) {
  const auto micro_batch = expected.at("micro_batch").get<std::size_t>();
  const auto rank = expected.at("rank").get<std::size_t>();
  task.logits = inputs.at("logits").at(micro_batch).at(rank).get<std::vector<float>>();
  const auto local = expected.at("local_counts").get<std::vector<std::int64_t>>();
  const auto accumulated = expected.at("accumulated_counts").get<std::vector<std::int64_t>>();
  for (std::size_t e = 0; e < local.size(); ++e) task.load.push_back(accumulated[e] - local[e]);
}

inline void global_batch_loss(Subject& subject, const Json& recorded, Comparison& comparison) {
  const Json& config = recorded.at("config");
  for (const Json& expected : recorded.at("expected")) {
    Task task = task_of(config, recorded.at("inputs"));
    task.loss = Loss::global_batch;
    task.coefficient = config.at("coefficient");
    fill_global_batch(task, recorded.at("inputs"), expected);
    const Answer answer = subject.answer(task);
    comparison.exact("local_counts", answer.counts, expected.at("local_counts").get<std::vector<std::int64_t>>());
    comparison.exact("accumulated_counts", answer.load, expected.at("accumulated_counts").get<std::vector<std::int64_t>>());
    comparison.close("loss", answer.loss, expected.at("loss"), value_tolerance);
    comparison.close("grad_logits", answer.grad_logits_of_loss, expected.at("grad_logits").get<std::vector<double>>(),
                     gradient_tolerance);
  }
}

inline void z_loss(Subject& subject, const Json& recorded, Comparison& comparison) {
  const Json& expected = recorded.at("expected");
  Task task = task_of(recorded.at("config"), recorded.at("inputs"));
  task.loss = Loss::z;
  task.coefficient = recorded.at("config").at("coefficient");
  const Answer answer = subject.answer(task);
  comparison.close("loss", answer.loss, expected.at("loss"), value_tolerance);
  comparison.close("grad_logits", answer.grad_logits_of_loss, expected.at("grad_logits").get<std::vector<double>>(),
                   gradient_tolerance);
}

inline void bias_update(Subject& subject, const Json& recorded, Comparison& comparison) {
  const Json& config = recorded.at("config");
  if (config.at("rule") != "sign") throw NotOffered("bias rule " + config.at("rule").get<std::string>() + " is not offered");
  BiasTask task;
  task.layers = config.at("layers");
  task.experts = config.at("experts");
  task.update_rate = config.at("update_rate");
  task.counts_per_step = recorded.at("inputs").at("counts_per_step").get<std::vector<std::vector<std::int64_t>>>();
  const auto want = recorded.at("expected").at("bias_per_step").get<std::vector<std::vector<double>>>();
  const std::vector<std::vector<float>> got = subject.biases(task);
  for (std::size_t step = 0; step < want.size(); ++step) {
    comparison.close("bias_per_step", got.at(step), want[step], value_tolerance);
  }
}

inline void quantile_balancing(Subject& subject, const Json& recorded, Comparison& comparison) {
  const Json& config = recorded.at("config");
  const Json& expected = recorded.at("expected");
  const QuantileAnswer answer = subject.balance_quantiles({.tokens = config.at("tokens"),
                                                           .experts = config.at("experts"),
                                                           .k = config.at("top_k"),
                                                           .ema = config.at("ema"),
                                                           .scores = recorded.at("inputs").at("scores"),
                                                           .beta = recorded.at("inputs").at("beta")});
  comparison.exact("experts", answer.experts, expected.at("experts").get<std::vector<int>>());
  if (!answer.quantile.empty())
    comparison.close("quantile", answer.quantile, expected.at("quantile").get<std::vector<double>>(), value_tolerance);
  comparison.close("next_beta", answer.next_beta, expected.at("next_beta").get<std::vector<double>>(), value_tolerance);
}

/// The rules of a bias that were recorded.
inline void bias_controllers(Subject& subject, const Json& recorded, Comparison& comparison) {
  const Json& config = recorded.at("config");
  const Json& expected = recorded.at("expected").at("bias_per_step");
  for (const auto& recorded_rule : expected.items()) {
    const std::string& rule = recorded_rule.key();
    BiasTask task;
    task.experts = config.at("experts");
    task.update_rate = config.at("update_rate");
    if (rule == "proportional") {
      task.rule = BiasTask::Rule::proportional;
    } else if (rule == "smebu") {
      const Json& options = config.at("smebu");
      task.rule = BiasTask::Rule::smebu;
      task.update_rate = options.at("rate");
      task.momentum = options.at("momentum");
      task.slope = options.at("slope");
      task.centres_step = true;
    } else if (rule == "sign_centred") {
      task.centres_step = true;
    } else if (rule != "sign") {
      throw NotOffered("rule " + rule);
    }
    task.counts_per_step = recorded.at("inputs").at("counts_per_step").get<std::vector<std::vector<std::int64_t>>>();
    const auto want = expected.at(rule).get<std::vector<std::vector<double>>>();
    const std::vector<std::vector<float>> got = subject.biases(task);
    for (std::size_t step = 0; step < want.size(); ++step)
      comparison.close(rule.c_str(), got.at(step), want[step], value_tolerance);
  }
}

inline void sinkhorn(Subject& subject, const Json& recorded, Comparison& comparison) {
  const Json& config = recorded.at("config");
  const Json& expected = recorded.at("expected");
  const SinkhornAnswer answer =
      subject.sinkhorn({.tokens = config.at("tokens"),
                        .experts = config.at("experts"),
                        .k = config.at("top_k"),
                        .tolerance = config.at("tolerance"),
                        .scoring = config.at("weights") == "sigmoid of the logit" ? Scoring::sigmoid : Scoring::softmax,
                        .logits = recorded.at("inputs").at("logits")});
  comparison.close("normalised", answer.normalised, expected.at("normalised").get<std::vector<double>>(), value_tolerance);
  comparison.exact("experts", answer.experts, expected.at("experts").get<std::vector<int>>());
  comparison.close("weights", answer.weights, expected.at("weights").get<std::vector<double>>(), value_tolerance);
}

using Kind = void (*)(Subject&, const Json&, Comparison&);
inline const std::map<std::string, Kind>& kinds() {
  static const std::map<std::string, Kind> known{{"route", route},
                                                 {"gate", gate},
                                                 {"permute", permute},
                                                 {"capacity", capacity},
                                                 {"route_and_loss", route_and_loss},
                                                 {"balance_loss", balance_loss},
                                                 {"global_batch_loss", global_batch_loss},
                                                 {"z_loss", z_loss},
                                                 {"bias_update", bias_update},
                                                 {"quantile_balancing", quantile_balancing},
                                                 {"bias_controllers", bias_controllers},
                                                 {"sinkhorn", sinkhorn}};
  return known;
}

struct Tally {
  int passed = 0;
  int failed = 0;
};

inline void run_case(Subject& subject, const std::filesystem::path& file, Tally& tally) {
  const std::string place = subject.name();
  std::string name = file.stem().string();
  const auto report = [&](const char* outcome, const std::string& detail) {
    std::printf("%s [%s] %s%s\n", name.c_str(), place.c_str(), outcome, detail.empty() ? "" : (" (" + detail + ")").c_str());
  };
  try {
    std::ifstream stream(file);
    const Json recorded = Json::parse(stream);
    name = recorded.at("name").get<std::string>();
    const std::string kind = recorded.at("kind").get<std::string>();
    const auto runner = kinds().find(kind);
    if (runner == kinds().end()) throw NotOffered("kind " + kind + " is not supported");
    Comparison comparison;
    runner->second(subject, recorded, comparison);
    if (comparison.compared() == 0) throw std::runtime_error("the case holds nothing to compare");
    if (!comparison.first_difference().empty()) throw std::runtime_error(comparison.first_difference());
    ++tally.passed;
    report("PASSED", "");
  } catch (const std::exception& error) {
    ++tally.failed;
    report("FAILED", error.what());
  }
}

inline std::vector<std::filesystem::path> case_files(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".json") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

/// Every case of a folder through one subject.
inline void run_folder(Subject& subject, const std::filesystem::path& folder, Tally& tally) {
  for (const std::filesystem::path& file : case_files(folder)) run_case(subject, file, tally);
}

/// The folder of cases: the command line's argument, else MOE_BALANCE_GOLDEN_DIR of the environment, else `compiled_in`, else
/// golden/ beside this source file.
inline std::filesystem::path cases_folder(int argc, char** argv, const char* compiled_in) {
  if (argc > 1) return argv[1];
  if (const char* named = std::getenv("MOE_BALANCE_GOLDEN_DIR"); named != nullptr && *named != '\0') return named;
  if (compiled_in != nullptr) return compiled_in;
  return std::filesystem::path(__FILE__).parent_path() / "golden";
}

/// Prints the closing line and gives the exit status: 0 only when something ran and nothing failed.
inline int close(const Tally& tally, const std::filesystem::path& folder) {
  if (tally.passed + tally.failed == 0) {
    std::printf("nothing ran: no supported case in %s\n", folder.string().c_str());
  }
  std::printf("%d passed, %d failed\n", tally.passed, tally.failed);
  return tally.failed == 0 && tally.passed > 0 ? 0 : 1;
}

}  // namespace golden
