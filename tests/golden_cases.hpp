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
    for (std::size_t i = 0; i < want.size(); ++i) {
      const double distance = std::abs(static_cast<double>(got[i]) - want[i]);
      if (!(distance <= tolerance.absolute + tolerance.relative * std::abs(want[i]))) {
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

/// The routed K columns of each row, shared experts cut off after a look at them.
template <class T>
std::vector<T> routed_columns(const std::vector<T>& rows, const Task& task, int shared) {
  std::vector<T> result;
  const std::size_t width = static_cast<std::size_t>(task.k + shared);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (i % width < static_cast<std::size_t>(task.k)) result.push_back(rows[i]);
  }
  return result;
}

/// Shared experts hold ids E, E + 1, ... with weight 1 (-1 and 0 for inactive tokens): the caller's own columns, so this looks
/// only at the recorded file.
inline void compare_shared_experts(const Json& expected, const Task& task, int shared, Comparison& comparison) {
  const auto ids = expected.at("experts").get<std::vector<int>>();
  const auto weights = expected.at("weights").get<std::vector<double>>();
  std::vector<int> want_ids;
  std::vector<int> recorded_ids;
  std::vector<double> want_weights;
  std::vector<float> recorded_weights;
  for (int t = 0; t < task.tokens; ++t) {
    const bool active = task.active.empty() || task.active[static_cast<std::size_t>(t)] != 0;
    for (int s = 0; s < shared; ++s) {
      const std::size_t at = static_cast<std::size_t>(t * (task.k + shared) + task.k + s);
      recorded_ids.push_back(ids.at(at));
      recorded_weights.push_back(static_cast<float>(weights.at(at)));
      want_ids.push_back(active ? task.experts + s : -1);
      want_weights.push_back(active ? 1.0 : 0.0);
    }
  }
  comparison.exact("shared experts", recorded_ids, want_ids);
  comparison.close("shared weights", recorded_weights, want_weights, value_tolerance);
}

/// Physical ids are the placement's business; where a case maps them, all else in it is compared and the case then says so.
inline void gate(Subject& subject, const Json& recorded, Comparison& comparison) {
  const Json& config = recorded.at("config");
  const Json& expected = recorded.at("expected");
  Task task = task_of(config, recorded.at("inputs"));
  const int shared = config.value("shared_experts", 0);
  task.renormalise = true;
  if (task.scoring == Scoring::softmax) task.scoring = Scoring::softmax_over_selected;
  const Answer answer = subject.answer(task);
  comparison.exact("logical_experts", answer.experts, expected.at("logical_experts").get<std::vector<int>>());
  comparison.close("weights", answer.weights,
                   routed_columns(expected.at("weights").get<std::vector<double>>(), task, shared), value_tolerance);
  if (shared > 0) compare_shared_experts(expected, task, shared, comparison);
  const bool mapped = !array_or_empty<int>(recorded.at("inputs"), "replica_count").empty();
  if (mapped && comparison.first_difference().empty()) {
    throw NotOffered("logical experts and weights agree; replica maps are not offered");
  }
  if (!mapped) {
    comparison.exact("experts", answer.experts,
                     routed_columns(expected.at("experts").get<std::vector<int>>(), task, shared));
  }
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
inline void global_batch_loss(Subject& subject, const Json& recorded, Comparison& comparison) {
  const Json& config = recorded.at("config");
  for (const Json& expected : recorded.at("expected")) {
    Task task = task_of(config, recorded.at("inputs"));
    task.loss = Loss::global_batch;
    task.coefficient = config.at("coefficient");
    const auto micro_batch = expected.at("micro_batch").get<std::size_t>();
    const auto rank = expected.at("rank").get<std::size_t>();
    task.logits = recorded.at("inputs").at("logits").at(micro_batch).at(rank).get<std::vector<float>>();
    const auto local = expected.at("local_counts").get<std::vector<std::int64_t>>();
    const auto accumulated = expected.at("accumulated_counts").get<std::vector<std::int64_t>>();
    for (std::size_t e = 0; e < local.size(); ++e) task.load.push_back(accumulated[e] - local[e]);
    const Answer answer = subject.answer(task);
    comparison.exact("local_counts", answer.counts, local);
    comparison.exact("accumulated_counts", answer.load, accumulated);
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

using Kind = void (*)(Subject&, const Json&, Comparison&);
inline const std::map<std::string, Kind>& kinds() {
  static const std::map<std::string, Kind> known{{"route", route},
                                                 {"gate", gate},
                                                 {"route_and_loss", route_and_loss},
                                                 {"balance_loss", balance_loss},
                                                 {"global_batch_loss", global_batch_loss},
                                                 {"z_loss", z_loss},
                                                 {"bias_update", bias_update}};
  return known;
}

struct Tally {
  int passed = 0;
  int failed = 0;
  int skipped = 0;
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
  } catch (const NotOffered& reason) {
    ++tally.skipped;
    report("SKIPPED", reason.what());
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
  std::printf("%d passed, %d failed, %d skipped\n", tally.passed, tally.failed, tally.skipped);
  return tally.failed == 0 && tally.passed > 0 ? 0 : 1;
}

}  // namespace golden
