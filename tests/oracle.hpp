// The oracle: everything the library computes, as plain loops in double, written from FORMULAS.md and CONTRACT.md.
// It includes nothing of the library and shares no code with it, so the two agree only when both are right.
//
// T = tokens, E = experts, K = experts per token. Matrices are row-major vectors of doubles.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

namespace oracle {

using Int = std::int64_t;

// ---- scoring ------------------------------------------------------------------------------------------------------------------

/// How a logit becomes a score. The two row-wise kinds ignore `score` and `derivative`.
struct Scoring {
  enum class Kind { softmax, softmax_over_selected, elementwise };
  Kind kind = Kind::elementwise;
  std::function<double(double)> score;
  std::function<double(double)> derivative;
  /// Sum of the sizes of the terms that make the derivative; empty = its own size.
  std::function<double(double)> derivative_magnitude;
};

inline double logistic(double x) {
  return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
}

inline double root_of_softplus(double x) {
  if (std::isnan(x)) return x;
  return std::sqrt(x > 20 ? x : std::log1p(std::exp(x)));
}

/// sigmoid(x) / (2 s) and, where s = sqrt(x), 1 / (2 s). Far to the left softplus(x) = exp(x), hence s' = s / 2: no 0 / 0.
inline double derivative_of_root_of_softplus(double x) {
  if (x < -36) return 0.5 * std::exp(0.5 * x);
  const double slope = x > 20 ? 1.0 : logistic(x);
  return slope / (2 * root_of_softplus(x));
}

inline Scoring softmax() {
  return {Scoring::Kind::softmax, {}, {}, {}};
}
inline Scoring softmax_over_selected() {
  return {Scoring::Kind::softmax_over_selected, {}, {}, {}};
}
inline Scoring elementwise(std::function<double(double)> score, std::function<double(double)> derivative) {
  return {Scoring::Kind::elementwise, std::move(score), std::move(derivative), {}};
}
inline Scoring sigmoid() {
  Scoring scoring = elementwise(logistic, [](double x) { return logistic(x) * (1 - logistic(x)); });
  scoring.derivative_magnitude = [](double x) { return logistic(x) * (1 + logistic(x)); };  // s - s^2
  return scoring;
}
inline Scoring sqrt_softplus() {
  return elementwise(root_of_softplus, derivative_of_root_of_softplus);
}
inline Scoring identity() {
  return elementwise([](double x) { return x; }, [](double) { return 1.0; });
}

// ---- the problem --------------------------------------------------------------------------------------------------------------

/// One routing call. Empty vectors are arguments that were left out.
struct Problem {
  Int tokens = 0;
  int experts = 0;
  int k = 1;
  std::vector<double> logits;        ///< [T, E]
  std::vector<double> bias;          ///< [E]
  bool bias_is_factor = false;       ///< ranks by score * (1 + bias), or 0
  std::vector<std::uint8_t> active;  ///< [T]
  Scoring scoring;
  bool renormalise = true;
  double scaling_factor = 1;
  int groups = 0;  ///< 0 = no group limit
  int groups_kept = 0;
  int group_score_top = 2;
  /// Of selections that keep fewer than K: an expert stays where this is above 0. `before`: the sum of the scores of those that rank before it; `best`: the
  /// first one's score. Empty = all K stay.
  std::function<double(double score, double ranking, double before, double best, int rank)> surplus;
  bool replay = false;
  std::vector<int> replay_experts;          ///< [T, K]
  std::vector<std::uint8_t> replay_tokens;  ///< [T]; empty = all

  double logit(Int token, int expert) const { return logits[static_cast<std::size_t>(token * experts + expert)]; }
  double ranking_of(double value, int expert) const {
    return bias_is_factor ? value * std::max(0.0, 1 + bias_of(expert)) : value + bias_of(expert);
  }
  double bias_of(int expert) const { return bias.empty() ? 0.0 : bias[static_cast<std::size_t>(expert)]; }
  bool is_active(Int token) const { return active.empty() || active[static_cast<std::size_t>(token)] != 0; }
  bool is_replayed(Int token) const {
    return replay && (replay_tokens.empty() || replay_tokens[static_cast<std::size_t>(token)] != 0);
  }
};

inline Int active_tokens(const Problem& problem) {
  Int total = 0;
  for (Int t = 0; t < problem.tokens; ++t) total += problem.is_active(t) ? 1 : 0;
  return total;
}

/// The probabilities of a row over its finite logits; a non-finite logit has 0.
inline std::vector<double> softmax_of_row(const Problem& problem, Int token) {
  const int experts = problem.experts;
  double largest = -std::numeric_limits<double>::infinity();
  for (int e = 0; e < experts; ++e) {
    if (std::isfinite(problem.logit(token, e))) largest = std::max(largest, problem.logit(token, e));
  }
  std::vector<double> row(static_cast<std::size_t>(experts), 0.0);
  double sum = 0;
  for (int e = 0; e < experts; ++e) {
    if (!std::isfinite(problem.logit(token, e))) continue;
    row[static_cast<std::size_t>(e)] = std::exp(problem.logit(token, e) - largest);
    sum += row[static_cast<std::size_t>(e)];
  }
  for (double& value : row) value = sum > 0 ? value / sum : 0;
  return row;
}

/// -sum p log p.
inline double entropy_of_row(const std::vector<double>& probabilities) {
  double sum = 0;
  for (const double p : probabilities) sum -= p > 0 ? p * std::log(p) : 0.0;
  return sum;
}

/// log(sum of exp) of a row's finite logits.
inline double logsumexp_of_row(const Problem& problem, Int token) {
  double largest = -std::numeric_limits<double>::infinity();
  for (int e = 0; e < problem.experts; ++e) {
    if (std::isfinite(problem.logit(token, e))) largest = std::max(largest, problem.logit(token, e));
  }
  double sum = 0;
  for (int e = 0; e < problem.experts; ++e) {
    if (std::isfinite(problem.logit(token, e))) sum += std::exp(problem.logit(token, e) - largest);
  }
  return largest + std::log(sum);
}

/// Scores of one row as sums read them: a non-finite logit has score 0.
inline std::vector<double> scores_of_row(const Problem& problem, Int token) {
  if (problem.scoring.kind != Scoring::Kind::elementwise) return softmax_of_row(problem, token);
  std::vector<double> row(static_cast<std::size_t>(problem.experts), 0.0);
  for (int e = 0; e < problem.experts; ++e) {
    const double logit = problem.logit(token, e);
    if (std::isfinite(logit)) row[static_cast<std::size_t>(e)] = problem.scoring.score(logit);
  }
  return row;
}

// ---- choosing experts ---------------------------------------------------------------------------------------------------------

/// The order of CONTRACT.md lines 2 and 3: does a rank before b? NaN is below -inf; -0 equals +0.
inline bool ranks_before(double a, int id_a, double b, int id_b) {
  if (std::isnan(a) != std::isnan(b)) return std::isnan(b);
  if (!std::isnan(a) && a != b) return a > b;
  return id_a < id_b;
}

/// Softmax as selection reads it: where the largest logit is infinite, those that have it share everything; NaN takes no part.
inline std::vector<double> softmax_ranking_of_row(const Problem& problem, Int token) {
  double largest = -std::numeric_limits<double>::infinity();
  int sharers = 0;
  for (int e = 0; e < problem.experts; ++e) {
    if (!std::isnan(problem.logit(token, e))) largest = std::max(largest, problem.logit(token, e));
  }
  if (std::isfinite(largest)) return softmax_of_row(problem, token);
  for (int e = 0; e < problem.experts; ++e) sharers += problem.logit(token, e) == largest ? 1 : 0;
  std::vector<double> row;
  for (int e = 0; e < problem.experts; ++e) row.push_back(problem.logit(token, e) == largest ? 1.0 / sharers : 0.0);
  return row;
}

/// What decides a row: score + bias (or the product), or logit + bias for SoftmaxOverSelected.
inline std::vector<double> ranking_of_row(const Problem& problem, Int token) {
  std::vector<double> probabilities;
  if (problem.scoring.kind == Scoring::Kind::softmax) probabilities = softmax_ranking_of_row(problem, token);
  std::vector<double> ranking(static_cast<std::size_t>(problem.experts));
  for (int e = 0; e < problem.experts; ++e) {
    const double logit = problem.logit(token, e);
    double value = logit;
    if (problem.scoring.kind == Scoring::Kind::softmax && !std::isnan(logit)) {
      value = probabilities[static_cast<std::size_t>(e)];
    } else if (problem.scoring.kind == Scoring::Kind::elementwise) {
      value = problem.scoring.score(logit);
    }
    ranking[static_cast<std::size_t>(e)] = problem.ranking_of(value, e);
  }
  return ranking;
}

/// Ids of `values`, best first.
inline std::vector<int> order_of(const std::vector<double>& values) {
  std::vector<int> ids(values.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::sort(ids.begin(), ids.end(), [&](int a, int b) {
    return ranks_before(values[static_cast<std::size_t>(a)], a, values[static_cast<std::size_t>(b)], b);
  });
  return ids;
}

/// Sum of a group's best `group_score_top` ranking values, for each group.
inline std::vector<double> group_scores_of_row(const Problem& problem, const std::vector<double>& ranking) {
  const int size = problem.experts / problem.groups;
  std::vector<double> scores;
  for (int g = 0; g < problem.groups; ++g) {
    const std::vector<double> members(ranking.begin() + g * size, ranking.begin() + (g + 1) * size);
    const std::vector<int> order = order_of(members);
    double sum = 0;
    for (int n = 0; n < std::min(problem.group_score_top, size); ++n) {
      sum += members[static_cast<std::size_t>(order[static_cast<std::size_t>(n)])];
    }
    scores.push_back(sum);
  }
  return scores;
}

/// The ids that one row may choose from, best first.
inline std::vector<int> candidates_of_row(const Problem& problem, const std::vector<double>& ranking) {
  std::vector<int> order = order_of(ranking);
  if (problem.groups == 0) return order;
  const std::vector<int> groups = order_of(group_scores_of_row(problem, ranking));
  const int size = problem.experts / problem.groups;
  std::vector<int> allowed;
  for (const int id : order) {
    const auto kept_end = groups.begin() + problem.groups_kept;
    if (std::find(groups.begin(), kept_end, id / size) != kept_end) allowed.push_back(id);
  }
  return allowed;
}

/// The surplus of each of K experts that were chosen in this order, and how large the values are that it comes from. Those of logit -infinity have none and
/// count for nothing.
struct Surplus {
  std::vector<double> value;
  std::vector<double> size;
};
inline Surplus surplus_of(const Problem& problem, Int token, const std::vector<int>& chosen) {
  std::vector<double> scores;
  const std::vector<double> of_row = scores_of_row(problem, token);
  double all = 0;
  for (const int id : chosen) all += of_row[static_cast<std::size_t>(id)];
  for (const int id : chosen) {
    const double score = of_row[static_cast<std::size_t>(id)];
    scores.push_back(problem.scoring.kind == Scoring::Kind::softmax_over_selected ? score / all : score);
  }
  Surplus result;
  double before = 0;
  double spread = 0;
  double best = std::nan("");
  for (std::size_t k = 0; k < chosen.size(); ++k) {
    if (!std::isfinite(problem.logit(token, chosen[k]))) {
      result.value.push_back(-1);
      result.size.push_back(0);
      continue;
    }
    if (std::isnan(best)) best = scores[k];
    const bool ranks_logits = problem.scoring.kind == Scoring::Kind::softmax_over_selected;
    const double value = ranks_logits ? problem.logit(token, chosen[k]) : scores[k];
    const double bias = problem.bias_of(chosen[k]);
    result.value.push_back(
        problem.surplus(scores[k], problem.ranking_of(value, chosen[k]), before, best, static_cast<int>(k)));
    if (problem.scoring.kind != Scoring::Kind::elementwise)
      spread = std::max(spread, logsumexp_of_row(problem, token) - problem.logit(token, chosen[k]));
    const double sizes = std::abs(value) + std::abs(scores[k]) + std::abs(bias) + std::abs(before) + std::abs(best);
    result.size.push_back(sizes * (1 + 0.1 * spread));
    before += scores[k];
  }
  return result;
}

/// Whether a token's K experts may be fewer: it chose them, none of their logits is NaN or +infinity, and one is finite.
inline bool may_keep_fewer(const Problem& problem, Int token, const std::vector<int>& chosen) {
  if (!problem.surplus || !problem.is_active(token) || problem.is_replayed(token)) return false;
  const auto is_finite = [&](int id) { return std::isfinite(problem.logit(token, id)); };
  return std::all_of(chosen.begin(), chosen.end(),
                     [&](int id) { return problem.logit(token, id) < std::numeric_limits<double>::infinity(); }) &&
         std::any_of(chosen.begin(), chosen.end(), is_finite);
}

/// Expert ids [T, K], best first; -1 for inactive tokens and for replayed ids outside [0, E).
inline std::vector<int> choose(const Problem& problem) {
  std::vector<int> ids(static_cast<std::size_t>(problem.tokens * problem.k), -1);
  for (Int t = 0; t < problem.tokens; ++t) {
    if (!problem.is_active(t)) continue;
    const std::size_t first = static_cast<std::size_t>(t * problem.k);
    if (problem.is_replayed(t)) {
      for (std::size_t k = 0; k < static_cast<std::size_t>(problem.k); ++k) {
        const int id = problem.replay_experts[first + k];
        ids[first + k] = id >= 0 && id < problem.experts ? id : -1;
      }
      continue;
    }
    const std::vector<int> candidates = candidates_of_row(problem, ranking_of_row(problem, t));
    for (std::size_t k = 0; k < static_cast<std::size_t>(problem.k) && k < candidates.size(); ++k) {
      ids[first + k] = candidates[k];
    }
    const std::vector<int> chosen(ids.begin() + static_cast<std::ptrdiff_t>(first),
                                  ids.begin() + static_cast<std::ptrdiff_t>(first) + problem.k);
    if (!may_keep_fewer(problem, t, chosen)) continue;
    const Surplus surplus = surplus_of(problem, t, chosen);
    for (std::size_t k = 0; k < chosen.size(); ++k) ids[first + k] = surplus.value[k] > 0 ? chosen[k] : -1;
  }
  return ids;
}

// ---- comparing a selection ----------------------------------------------------------------------------------------------------

/// How far two float32 computations of a ranking value may lie from the double one: `relative` times |score| + |bias|, and
/// for a softmax of spread D also D * 2^-24 (the rounding of x - max).
struct Resolution {
  double relative = 0;
};
inline constexpr Resolution float32_resolution{1e-6};
inline constexpr Resolution float64_resolution{1e-14};
/// For values that both computations hold exactly: every order is decided.
inline constexpr Resolution exact_resolution{0};

struct SelectionReport {
  std::string first_difference;  ///< empty = the selection is right
  Int undecided_tokens = 0;      ///< tokens whose order lies within the resolution, checked for that only
};

inline SelectionReport check_selection(const Problem& problem, const std::vector<int>& ids, Resolution resolution);

/// check_selection where fewer than K may be kept: with the empty slots filled by those that should have been chosen it is a selection of K, of which
/// the right ones stay; one whose surplus is 0 within the resolution may do either.
inline SelectionReport check_kept(const Problem& problem, const std::vector<int>& ids, Resolution resolution) {
  Problem all = problem;
  all.surplus = nullptr;
  const std::vector<int> expected = choose(all);
  std::vector<int> filled = ids;
  if (ids.size() != expected.size()) return {"ids have another size", 0};
  for (Int t = 0; t < problem.tokens; ++t) {
    const auto first = static_cast<std::ptrdiff_t>(t * problem.k), last = first + problem.k;
    if (!problem.is_active(t) || problem.is_replayed(t)) continue;
    std::vector<int> left(expected.begin() + first, expected.begin() + last);
    left.erase(
        std::remove_if(left.begin(), left.end(),
                       [&](int id) { return std::find(ids.begin() + first, ids.begin() + last, id) != ids.begin() + last; }),
        left.end());
    for (auto i = first; i < last; ++i) {
      int& id = filled[static_cast<std::size_t>(i)];
      if (id != -1 || left.empty()) continue;
      id = left.front();
      left.erase(left.begin());
    }
  }
  SelectionReport report = check_selection(all, filled, resolution);
  for (Int t = 0; t < problem.tokens && report.first_difference.empty(); ++t) {
    const auto first = static_cast<std::ptrdiff_t>(t * problem.k);
    const std::vector<int> chosen(filled.begin() + first, filled.begin() + first + problem.k);
    const bool may_be_fewer = may_keep_fewer(problem, t, chosen);
    const Surplus surplus = may_be_fewer ? surplus_of(problem, t, chosen) : Surplus{};
    for (std::size_t k = 0; k < chosen.size(); ++k) {
      const bool kept = ids[static_cast<std::size_t>(first) + k] >= 0;
      const bool is_expert = chosen[k] >= 0;
      if (kept == (is_expert && (!may_be_fewer || surplus.value[k] > 0))) continue;
      if (may_be_fewer && std::abs(surplus.value[k]) <= resolution.relative * surplus.size[k]) {
        ++report.undecided_tokens;
        continue;
      }
      report.first_difference = "token " + std::to_string(t) + " slot " + std::to_string(k) + ": expert " +
                                std::to_string(chosen[k]) + (kept ? " was kept" : " was not kept");
      break;
    }
  }
  return report;
}

/// Checks ids [T, K] from elsewhere. A token whose decisive gaps exceed the resolution must agree exactly; experts with the same
/// logit and bias are always decided (by the smaller id). Within the resolution ids must be distinct, in range and nearly ordered.
inline SelectionReport check_selection(const Problem& problem, const std::vector<int>& ids, Resolution resolution) {
  if (problem.surplus) return check_kept(problem, ids, resolution);
  SelectionReport report;
  const std::vector<int> expected = choose(problem);
  if (ids.size() != expected.size()) {
    report.first_difference = "ids have another size";
    return report;
  }
  const auto complain = [&](Int t, int k, const std::string& what) {
    if (!report.first_difference.empty()) return;
    report.first_difference = "token " + std::to_string(t) + " slot " + std::to_string(k) + ": " + what;
  };
  for (Int t = 0; t < problem.tokens; ++t) {
    const std::size_t first = static_cast<std::size_t>(t * problem.k);
    int differs = -1;
    for (int k = problem.k - 1; k >= 0; --k) {
      if (ids[first + static_cast<std::size_t>(k)] != expected[first + static_cast<std::size_t>(k)]) differs = k;
    }
    if (differs < 0) continue;
    const std::string wrong = "expected expert " + std::to_string(expected[first + static_cast<std::size_t>(differs)]) +
                              ", got " + std::to_string(ids[first + static_cast<std::size_t>(differs)]);
    if (!problem.is_active(t) || problem.is_replayed(t)) {
      complain(t, differs, wrong);
      continue;
    }
    std::vector<bool> seen(static_cast<std::size_t>(problem.experts), false);
    bool usable = true;
    for (int k = 0; k < problem.k; ++k) {
      const int id = ids[first + static_cast<std::size_t>(k)];
      if (id < 0 || id >= problem.experts || seen[static_cast<std::size_t>(id)]) {
        complain(t, k, "id " + std::to_string(id) + " is repeated or out of range");
        usable = false;
        break;
      }
      seen[static_cast<std::size_t>(id)] = true;
    }
    if (!usable) continue;

    const std::vector<double> ranking = ranking_of_row(problem, t);
    double spread = 0;
    double largest = -std::numeric_limits<double>::infinity();
    for (int e = 0; e < problem.experts; ++e) {
      if (std::isfinite(problem.logit(t, e))) largest = std::max(largest, problem.logit(t, e));
    }
    const auto bound = [&](int e) {
      const double value = ranking[static_cast<std::size_t>(e)];
      if (!std::isfinite(value)) return 0.0;
      spread = problem.scoring.kind == Scoring::Kind::softmax ? std::abs(problem.logit(t, e) - largest) : 0.0;
      if (!std::isfinite(spread)) spread = 0;
      return resolution.relative *
                 ((std::abs(value - problem.bias_of(e)) * (1 + 0.1 * spread)) + std::abs(problem.bias_of(e))) +
             1e-44;
    };
    const auto near = [&](int a, int b) {
      const double va = ranking[static_cast<std::size_t>(a)];
      const double vb = ranking[static_cast<std::size_t>(b)];
      const bool same_inputs = (problem.logit(t, a) == problem.logit(t, b)) && problem.bias_of(a) == problem.bias_of(b);
      return resolution.relative > 0 && !same_inputs && std::isfinite(va) && std::isfinite(vb) &&
             std::abs(va - vb) <= bound(a) + bound(b);
    };
    bool groups_near = false;
    if (problem.groups > 0) {
      const std::vector<double> scores = group_scores_of_row(problem, ranking);
      const std::vector<int> order = order_of(scores);
      if (problem.groups_kept < problem.groups) {
        const double last = scores[static_cast<std::size_t>(order[static_cast<std::size_t>(problem.groups_kept - 1)])];
        const double next = scores[static_cast<std::size_t>(order[static_cast<std::size_t>(problem.groups_kept)])];
        groups_near = std::abs(last - next) <= 4 * resolution.relative * (std::abs(last) + std::abs(next)) && last != next;
      }
    }
    if (groups_near) {
      ++report.undecided_tokens;
      continue;
    }
    const std::vector<int> candidates = candidates_of_row(problem, ranking);
    bool decided_wrong = false;
    for (int k = 0; k < problem.k && !decided_wrong; ++k) {
      const int got = ids[first + static_cast<std::size_t>(k)];
      const int want = candidates[static_cast<std::size_t>(k)];
      const bool allowed = std::find(candidates.begin(), candidates.end(), got) != candidates.end();
      decided_wrong = !allowed || (got != want && !near(got, want));
    }
    if (decided_wrong) {
      complain(t, differs, wrong);
    } else {
      ++report.undecided_tokens;
    }
  }
  return report;
}

// ---- weights and counts -------------------------------------------------------------------------------------------------------

/// Everything that follows once the experts are chosen.
struct Evaluation {
  std::vector<double> weights;           ///< [T, K]
  std::vector<Int> counts;               ///< [E]
  std::vector<double> scores;            ///< [T, E]; 0 where the logit is not finite
  std::vector<double> probabilities;     ///< [T, E]: what P averages; 0 in rows that do not take part
  std::vector<double> logsumexp;         ///< [T]
  std::vector<std::uint8_t> takes_part;  ///< [T]: active and no non-finite logit among the chosen
  Int non_finite_tokens = 0;
};

inline Evaluation evaluate(const Problem& problem, const std::vector<int>& ids) {
  const std::size_t experts = static_cast<std::size_t>(problem.experts);
  const std::size_t slots = static_cast<std::size_t>(problem.k);
  const std::size_t tokens = static_cast<std::size_t>(problem.tokens);
  Evaluation result;
  result.weights.assign(tokens * slots, 0.0);
  result.counts.assign(experts, 0);
  result.scores.assign(tokens * experts, 0.0);
  result.probabilities.assign(tokens * experts, 0.0);
  result.logsumexp.assign(tokens, 0.0);
  result.takes_part.assign(tokens, 0);
  for (std::size_t t = 0; t < tokens; ++t) {
    const Int token = static_cast<Int>(t);
    if (!problem.is_active(token)) continue;
    bool finite = true;
    for (std::size_t k = 0; k < slots; ++k) {
      const int id = ids[t * slots + k];
      if (id < 0) continue;
      ++result.counts[static_cast<std::size_t>(id)];
      finite = finite && std::isfinite(problem.logit(token, id));
    }
    if (!finite) {
      ++result.non_finite_tokens;
      continue;
    }
    result.takes_part[t] = 1;
    const std::vector<double> scores = scores_of_row(problem, token);
    std::copy(scores.begin(), scores.end(), result.scores.begin() + static_cast<std::ptrdiff_t>(t * experts));
    result.logsumexp[t] = logsumexp_of_row(problem, token);

    const bool selected_only = problem.scoring.kind == Scoring::Kind::softmax_over_selected;
    double sum = 0;
    double largest = -std::numeric_limits<double>::infinity();
    for (std::size_t k = 0; k < slots; ++k) {
      const int id = ids[t * slots + k];
      if (id < 0) continue;
      sum += scores[static_cast<std::size_t>(id)];
      largest = std::max(largest, problem.logit(token, id));
    }
    double selected_sum = 0;
    for (std::size_t k = 0; k < slots; ++k) {
      const int id = ids[t * slots + k];
      if (id >= 0) selected_sum += std::exp(problem.logit(token, id) - largest);
    }
    for (std::size_t k = 0; k < slots; ++k) {
      const int id = ids[t * slots + k];
      if (id < 0) continue;
      double weight = scores[static_cast<std::size_t>(id)];
      if (selected_only) {
        weight = std::exp(problem.logit(token, id) - largest) / selected_sum;
      } else if (problem.renormalise && problem.k > 1) {
        weight /= sum + 1e-20;
      }
      result.weights[t * slots + k] = problem.scaling_factor * weight;
    }

    double all = 0;
    for (const double score : scores) all += score;
    const bool normalise = problem.scoring.kind == Scoring::Kind::elementwise;
    for (std::size_t e = 0; e < experts; ++e) {
      result.probabilities[t * experts + e] = normalise && all != 0 ? scores[e] / all : scores[e];
    }
  }
  return result;
}

// ---- losses -------------------------------------------------------------------------------------------------------------------

/// One loss. Those of P are sum_i slope(i, counts, tokens) P_i over the tokens of their scope; the z-loss is a mean over tokens.
struct Loss {
  enum class Scope { micro_batch, sequence, global_batch, token };
  Scope scope = Scope::micro_batch;
  /// The slope of expert i, from the scope's counts and its number of active tokens.
  std::function<double(int expert, const std::vector<Int>& counts, Int tokens)> slope;
  std::function<double(double logsumexp)> token_loss;
  std::function<double(double logsumexp)> token_slope;
  /// Of scope token, in the place of those two: of the entropy of a row's softmax.
  std::function<double(double entropy)> entropy_loss;
  std::function<double(double entropy)> entropy_slope;
  /// In the place of a slope: a function of all P, and its derivatives by each of them, of a micro-batch or a sequence.
  std::function<double(const std::vector<double>& mean_probability)> value_of_means;
  std::function<double(int expert, const std::vector<double>& mean_probability)> slope_of_means;
  /// In the place of a slope: from what each active token of the scope has chosen.
  std::function<double(int expert, const std::vector<std::vector<int>>& choices)> slope_of_choices;
};

/// coefficient * E * sum_i f_i P_i with f_i = count_i / (K T); `per_token` leaves the K out.
inline Loss frequency_loss(Loss::Scope scope, double coefficient, int experts, int k, bool per_token) {
  Loss loss;
  loss.scope = scope;
  loss.slope = [=](int expert, const std::vector<Int>& counts, Int tokens) {
    if (tokens == 0) return 0.0;
    const double divisor = static_cast<double>(tokens) * (per_token ? 1 : k);
    return coefficient * experts * static_cast<double>(counts[static_cast<std::size_t>(expert)]) / divisor;
  };
  return loss;
}
inline Loss aux_loss(double coefficient, int experts, int k, bool per_token = false) {
  return frequency_loss(Loss::Scope::micro_batch, coefficient, experts, k, per_token);
}
inline Loss sequence_loss(double coefficient, int experts, int k, bool per_token = false) {
  return frequency_loss(Loss::Scope::sequence, coefficient, experts, k, per_token);
}
/// coefficient * E * sum_i F_i P_i, F_i = accumulated_i / sum of accumulated (times K where `per_token`).
inline Loss global_batch_loss(double coefficient, int experts, int k, bool per_token = false) {
  Loss loss;
  loss.scope = Loss::Scope::global_batch;
  loss.slope = [=](int expert, const std::vector<Int>& counts, Int) {
    const double all = static_cast<double>(std::accumulate(counts.begin(), counts.end(), Int{0}));
    if (all == 0) return 0.0;
    return coefficient * experts * static_cast<double>(counts[static_cast<std::size_t>(expert)]) / all * (per_token ? k : 1);
  };
  return loss;
}
/// Over devices that hold equal blocks of experts: sum_d f'_d P'_d, f'_d the mean of the experts' f, P'_d the sum of their P.
inline Loss device_loss(const Loss& of_experts, int experts, int devices) {
  Loss loss;
  loss.scope = of_experts.scope;
  loss.slope = [=](int expert, const std::vector<Int>& counts, Int tokens) {
    const auto device_of = [&](int e) { return static_cast<Int>(e) * devices / experts; };
    double sum = 0;
    int members = 0;
    for (int e = 0; e < experts; ++e) {
      if (device_of(e) != device_of(expert)) continue;
      sum += of_experts.slope(e, counts, tokens);
      ++members;
    }
    return sum / members;
  };
  return loss;
}
/// coefficient * sum_d f_d P_d over devices that hold equal blocks of experts, f_d = devices / (reached T) * the tokens that have an expert of device d (times
/// `reached` where `per_token`), P_d the sum of its experts' P.
inline Loss communication_loss(Loss::Scope scope, double coefficient, int experts, int devices, int reached,
                               bool per_token) {
  Loss loss;
  loss.scope = scope;
  loss.slope_of_choices = [=](int expert, const std::vector<std::vector<int>>& choices) {
    if (choices.empty()) return 0.0;
    const auto device_of = [&](int e) { return static_cast<Int>(e) * devices / experts; };
    double tokens = 0;
    for (const std::vector<int>& chosen : choices) {
      tokens += std::any_of(chosen.begin(), chosen.end(), [&](int e) { return device_of(e) == device_of(expert); }) ? 1 : 0;
    }
    return coefficient * devices * tokens / static_cast<double>(choices.size()) / (per_token ? 1 : reached);
  };
  return loss;
}
/// Of experts of which the last `zero` compute nothing: coefficient * sum over groups of f_j P_j, with `devices` groups of computing experts (each expert
/// for itself where that is their number), f_j = devices / (computed T) * the slots of group j, and one group of the others, f = its slots / ((k -
/// computed) T). In a global batch T is all assignments / k.
inline Loss zero_computation_loss(Loss::Scope scope, double coefficient, int experts, int k, int zero, double computed,
                                  int devices, bool per_token) {
  Loss loss;
  loss.scope = scope;
  loss.slope = [=](int expert, const std::vector<Int>& counts, Int tokens) {
    const int computing = experts - zero;
    const auto group_of = [&](int e) {
      return e < computing ? static_cast<int>(static_cast<Int>(e) * devices / computing) : devices;
    };
    double slots = 0;
    double all = 0;
    for (int e = 0; e < experts; ++e) {
      const auto count = static_cast<double>(counts[static_cast<std::size_t>(e)]);
      all += count;
      if (group_of(e) == group_of(expert)) slots += count;
    }
    const double t = scope == Loss::Scope::global_batch ? all / k : static_cast<double>(tokens);
    if (t == 0) return 0.0;
    const double f = expert < computing ? devices / (computed * t) * slots : slots / ((k - computed) * t);
    return coefficient * f * (per_token ? k : 1);
  };
  return loss;
}
/// The entropy of each token's softmax.
inline Loss entropy_loss(double coefficient) {
  Loss loss;
  loss.scope = Loss::Scope::token;
  loss.entropy_loss = [=](double entropy) { return coefficient * entropy; };
  loss.entropy_slope = [=](double) { return coefficient; };
  return loss;
}
/// groups * sum P^2 - sum P over equal groups of experts: variance / mean^2 where P sum to 1, as they do but for tokens that are not finite.
inline Loss importance_loss(double coefficient, int experts, int groups) {
  Loss loss;
  const auto sums_of = [=](const std::vector<double>& p) {
    std::vector<double> sums(static_cast<std::size_t>(groups), 0.0);
    for (int e = 0; e < experts; ++e)
      sums[static_cast<std::size_t>(static_cast<Int>(e) * groups / experts)] += p[static_cast<std::size_t>(e)];
    return sums;
  };
  loss.value_of_means = [=](const std::vector<double>& p) {
    double value = 0;
    for (const double sum : sums_of(p)) value += groups * sum * sum - sum;
    return coefficient * value;
  };
  loss.slope_of_means = [=](int expert, const std::vector<double>& p) {
    const auto group = static_cast<std::size_t>(static_cast<Int>(expert) * groups / experts);
    return coefficient * groups * 2 * sums_of(p)[group];
  };
  return loss;
}
/// Minus the entropy of P.
inline Loss mean_entropy_loss(double coefficient) {
  Loss loss;
  loss.value_of_means = [=](const std::vector<double>& p) {
    double sum = 0;
    for (const double value : p) sum += value > 0 ? value * std::log(value) : 0.0;
    return coefficient * sum;
  };
  loss.slope_of_means = [=](int expert, const std::vector<double>& p) {
    return coefficient * (std::log(std::max(p[static_cast<std::size_t>(expert)], 1e-300)) + 1);
  };
  return loss;
}
inline Loss z_loss(double coefficient) {
  Loss loss;
  loss.scope = Loss::Scope::token;
  loss.token_loss = [=](double lse) { return coefficient * lse * lse; };
  loss.token_slope = [=](double lse) { return 2 * coefficient * lse; };
  return loss;
}

/// What losses read beside one call's evaluation.
struct Surroundings {
  Int sequences = 1;
  std::vector<Int> sequence_of_token;  ///< [T]; empty = all in sequence 0
  std::vector<Int> accumulated;        ///< [E]: counts of this step so far, this call's included (global-batch loss)
};

namespace detail {

/// Tokens, counts and mean probabilities of one scope.
struct Scoped {
  Int tokens = 0;
  std::vector<Int> counts;
  std::vector<std::vector<int>> choices;  ///< of each token
  std::vector<double> mean_probability;
};

inline Int sequence_of(const Surroundings& around, Int token) {
  return around.sequence_of_token.empty() ? 0 : around.sequence_of_token[static_cast<std::size_t>(token)];
}

/// Sums over the tokens of one sequence, or of all (sequence = -1).
inline Scoped sums(const Problem& problem, const std::vector<int>& ids, const Evaluation& evaluation,
                   const Surroundings& around, Int sequence) {
  Scoped result;
  result.counts.assign(static_cast<std::size_t>(problem.experts), 0);
  result.mean_probability.assign(static_cast<std::size_t>(problem.experts), 0.0);
  for (Int t = 0; t < problem.tokens; ++t) {
    if (!problem.is_active(t) || (sequence >= 0 && sequence_of(around, t) != sequence)) continue;
    ++result.tokens;
    result.choices.emplace_back();
    for (int k = 0; k < problem.k; ++k) {
      const int id = ids[static_cast<std::size_t>(t * problem.k + k)];
      if (id < 0) continue;
      ++result.counts[static_cast<std::size_t>(id)];
      result.choices.back().push_back(id);
    }
    for (int e = 0; e < problem.experts; ++e) {
      result.mean_probability[static_cast<std::size_t>(e)] +=
          evaluation.probabilities[static_cast<std::size_t>(t * problem.experts + e)];
    }
  }
  if (result.tokens > 0) {
    for (double& value : result.mean_probability) value /= static_cast<double>(result.tokens);
  }
  return result;
}

/// Slopes [E] of one loss in one scope.
inline std::vector<double> slopes(const Problem& problem, const Loss& loss, const Scoped& scoped,
                                  const Surroundings& around) {
  const std::vector<Int>& counts = loss.scope == Loss::Scope::global_batch ? around.accumulated : scoped.counts;
  std::vector<double> result;
  if (loss.slope_of_means) {
    for (int e = 0; e < problem.experts; ++e) result.push_back(loss.slope_of_means(e, scoped.mean_probability));
    return result;
  }
  if (loss.slope_of_choices) {
    for (int e = 0; e < problem.experts; ++e) result.push_back(loss.slope_of_choices(e, scoped.choices));
    return result;
  }
  for (int e = 0; e < problem.experts; ++e) result.push_back(loss.slope(e, counts, scoped.tokens));
  if (problem.surplus && loss.scope != Loss::Scope::global_batch) {  // f = count / (all counts) instead of count / (K T)
    const double all = static_cast<double>(std::accumulate(counts.begin(), counts.end(), Int{0}));
    const double slots = static_cast<double>(scoped.tokens) * problem.k;
    for (double& slope : result) slope *= all > 0 ? slots / all : 0.0;
  }
  return result;
}

}  // namespace detail

/// The value of one loss.
inline double loss_value(const Problem& problem, const std::vector<int>& ids, const Evaluation& evaluation, const Loss& loss,
                         const Surroundings& around) {
  if (loss.scope == Loss::Scope::token) {
    double sum = 0;
    for (Int t = 0; t < problem.tokens; ++t) {
      if (evaluation.takes_part[static_cast<std::size_t>(t)]) {
        sum += loss.entropy_loss ? loss.entropy_loss(entropy_of_row(softmax_of_row(problem, t)))
                                 : loss.token_loss(evaluation.logsumexp[static_cast<std::size_t>(t)]);
      }
    }
    const Int tokens = active_tokens(problem);
    return tokens > 0 ? sum / static_cast<double>(tokens) : 0.0;
  }
  const bool by_sequence = loss.scope == Loss::Scope::sequence;
  const Int scopes = by_sequence ? around.sequences : 1;
  double total = 0;
  for (Int s = 0; s < scopes; ++s) {
    const detail::Scoped scoped = detail::sums(problem, ids, evaluation, around, by_sequence ? s : -1);
    if (loss.value_of_means) {
      total += scoped.tokens > 0 ? loss.value_of_means(scoped.mean_probability) : 0.0;
      continue;
    }
    const std::vector<double> slope = detail::slopes(problem, loss, scoped, around);
    for (std::size_t e = 0; e < slope.size(); ++e) total += slope[e] * scoped.mean_probability[e];
  }
  return total / static_cast<double>(scopes);
}

inline double total_loss(const Problem& problem, const std::vector<int>& ids, const Evaluation& evaluation,
                         const std::vector<Loss>& losses, const Surroundings& around) {
  double total = 0;
  for (const Loss& loss : losses) total += loss_value(problem, ids, evaluation, loss, around);
  return total;
}

// ---- gradients ----------------------------------------------------------------------------------------------------------------

/// A gradient, and for each element the sum of the absolute values of the terms whose sum it is: what rounding errors are measured
/// against, for where terms cancel no computation in the same precision does better.
struct Gradient {
  std::vector<double> value;
  std::vector<double> magnitude;
};

/// d(sum weights * grad_weights + loss_scale * sum of losses) / d(logits), [T, E]; ids and counts are constants.
/// Empty grad_weights means zeros.
inline Gradient gradient_and_magnitude(const Problem& problem, const std::vector<int>& ids,
                                       const std::vector<double>& grad_weights, const std::vector<Loss>& losses,
                                       const Surroundings& around, double loss_scale) {
  const Evaluation evaluation = evaluate(problem, ids);
  const std::size_t experts = static_cast<std::size_t>(problem.experts);
  const std::size_t slots = static_cast<std::size_t>(problem.k);
  const Int tokens_of_call = active_tokens(problem);
  std::vector<double> result(static_cast<std::size_t>(problem.tokens) * experts, 0.0);
  std::vector<double> magnitude(result.size(), 0.0);

  // dL/dp of every token, as a sum over losses: slope / (tokens of the scope) / (number of scopes).
  std::vector<double> grad_probability(result.size(), 0.0);
  for (const Loss& loss : losses) {
    if (loss.scope == Loss::Scope::token) continue;
    const bool by_sequence = loss.scope == Loss::Scope::sequence;
    const Int scopes = by_sequence ? around.sequences : 1;
    for (Int s = 0; s < scopes; ++s) {
      const detail::Scoped scoped = detail::sums(problem, ids, evaluation, around, by_sequence ? s : -1);
      if (scoped.tokens == 0) continue;
      const std::vector<double> slope = detail::slopes(problem, loss, scoped, around);
      const double divisor = static_cast<double>(scoped.tokens) * static_cast<double>(scopes);
      for (Int t = 0; t < problem.tokens; ++t) {
        if (by_sequence && detail::sequence_of(around, t) != s) continue;
        for (std::size_t e = 0; e < experts; ++e) {
          grad_probability[static_cast<std::size_t>(t) * experts + e] += loss_scale * slope[e] / divisor;
        }
      }
    }
  }

  for (std::size_t t = 0; t < static_cast<std::size_t>(problem.tokens); ++t) {
    if (!evaluation.takes_part[t]) continue;
    const Int token = static_cast<Int>(t);
    const double* score = &evaluation.scores[t * experts];
    const double* probability = &evaluation.probabilities[t * experts];
    const double* grad_p = &grad_probability[t * experts];
    double* out = &result[t * experts];
    double* size = &magnitude[t * experts];
    std::vector<double> grad_score(experts, 0.0);
    std::vector<double> score_size(experts, 0.0);

    // Through the weights.
    double chosen_sum = 1e-20;
    double dot = 0;
    double dot_size = 0;
    for (std::size_t k = 0; k < slots; ++k) {
      const int id = ids[t * slots + k];
      if (id < 0) continue;
      chosen_sum += score[id];
    }
    if (!grad_weights.empty()) {
      if (problem.scoring.kind == Scoring::Kind::softmax_over_selected) {
        for (std::size_t k = 0; k < slots; ++k) {
          dot += grad_weights[t * slots + k] * evaluation.weights[t * slots + k] / problem.scaling_factor;
          dot_size += std::abs(grad_weights[t * slots + k] * evaluation.weights[t * slots + k] / problem.scaling_factor);
        }
        for (std::size_t k = 0; k < slots; ++k) {
          const int id = ids[t * slots + k];
          if (id < 0) continue;
          out[id] += evaluation.weights[t * slots + k] * (grad_weights[t * slots + k] - dot);
          size[id] += std::abs(evaluation.weights[t * slots + k]) * (std::abs(grad_weights[t * slots + k]) + dot_size);
        }
      } else if (problem.renormalise && problem.k > 1) {
        for (std::size_t k = 0; k < slots; ++k) {
          const int id = ids[t * slots + k];
          if (id < 0) continue;
          dot += grad_weights[t * slots + k] * score[id] / chosen_sum;
          dot_size += std::abs(grad_weights[t * slots + k] * score[id] / chosen_sum);
        }
        for (std::size_t k = 0; k < slots; ++k) {
          const int id = ids[t * slots + k];
          if (id < 0) continue;
          grad_score[static_cast<std::size_t>(id)] +=
              problem.scaling_factor * (grad_weights[t * slots + k] - dot) / chosen_sum;
          score_size[static_cast<std::size_t>(id)] +=
              std::abs(problem.scaling_factor / chosen_sum) * (std::abs(grad_weights[t * slots + k]) + dot_size);
        }
      } else {
        for (std::size_t k = 0; k < slots; ++k) {
          const int id = ids[t * slots + k];
          if (id < 0) continue;
          grad_score[static_cast<std::size_t>(id)] += problem.scaling_factor * grad_weights[t * slots + k];
          score_size[static_cast<std::size_t>(id)] += std::abs(problem.scaling_factor * grad_weights[t * slots + k]);
        }
      }
    }

    // Through P, then through the scoring.
    if (problem.scoring.kind == Scoring::Kind::elementwise) {
      double all = 0;
      double mean = 0;
      double mean_size = 0;
      for (std::size_t e = 0; e < experts; ++e) {
        all += score[e];
        mean += grad_p[e] * probability[e];
        mean_size += std::abs(grad_p[e] * probability[e]);
      }
      for (std::size_t e = 0; e < experts; ++e) {
        const double logit = problem.logit(token, static_cast<int>(e));
        if (!std::isfinite(logit)) continue;
        const double derivative = problem.scoring.derivative(logit);
        const double derivative_size =
            problem.scoring.derivative_magnitude ? problem.scoring.derivative_magnitude(logit) : std::abs(derivative);
        const double inverse = all == 0 ? 0 : 1 / all;
        out[e] += (grad_score[e] + (grad_p[e] - mean) * inverse) * derivative;
        size[e] += (score_size[e] + std::abs((std::abs(grad_p[e]) + mean_size) * inverse)) * derivative_size;
      }
    } else {
      double mean = 0;
      double mean_size = 0;
      for (std::size_t e = 0; e < experts; ++e) {
        mean += (grad_score[e] + grad_p[e]) * probability[e];
        mean_size += (score_size[e] + std::abs(grad_p[e])) * probability[e];
      }
      for (std::size_t e = 0; e < experts; ++e) {
        out[e] += probability[e] * (grad_score[e] + grad_p[e] - mean);
        size[e] += probability[e] * (score_size[e] + std::abs(grad_p[e]) + mean_size);
      }
    }

    // Through each token's logsumexp.
    std::vector<double> row;
    for (const Loss& loss : losses) {
      if (loss.scope != Loss::Scope::token) continue;
      if (row.empty()) row = softmax_of_row(problem, token);
      if (loss.entropy_slope) {
        const double entropy = entropy_of_row(row);
        const double slope = loss_scale * loss.entropy_slope(entropy) / static_cast<double>(tokens_of_call);
        for (std::size_t e = 0; e < experts; ++e) {
          if (row[e] == 0) continue;
          out[e] -= slope * row[e] * (std::log(row[e]) + entropy);
          size[e] += std::abs(slope * row[e]) * (std::abs(std::log(row[e])) + entropy);
        }
        continue;
      }
      const double slope = loss_scale * loss.token_slope(evaluation.logsumexp[t]) / static_cast<double>(tokens_of_call);
      for (std::size_t e = 0; e < experts; ++e) {
        out[e] += slope * row[e];
        size[e] += std::abs(slope * row[e]);
      }
    }
  }
  return {result, magnitude};
}

inline std::vector<double> gradient(const Problem& problem, const std::vector<int>& ids,
                                    const std::vector<double>& grad_weights, const std::vector<Loss>& losses,
                                    const Surroundings& around, double loss_scale) {
  return gradient_and_magnitude(problem, ids, grad_weights, losses, around, loss_scale).value;
}

/// The same by central differences of the objective's value, ids and counts held: shares nothing with `gradient` but `evaluate`.
inline std::vector<double> gradient_by_differences(const Problem& problem, const std::vector<int>& ids,
                                                   const std::vector<double>& grad_weights, const std::vector<Loss>& losses,
                                                   const Surroundings& around, double loss_scale, double step = 1e-5) {
  const auto objective = [&](const Problem& at) {
    const Evaluation evaluation = evaluate(at, ids);
    double value = loss_scale * total_loss(at, ids, evaluation, losses, around);
    for (std::size_t i = 0; i < grad_weights.size(); ++i) value += grad_weights[i] * evaluation.weights[i];
    return value;
  };
  std::vector<double> result(problem.logits.size(), 0.0);
  Problem moved = problem;
  for (std::size_t i = 0; i < result.size(); ++i) {
    if (!std::isfinite(problem.logits[i])) continue;
    moved.logits[i] = problem.logits[i] + step;
    const double above = objective(moved);
    moved.logits[i] = problem.logits[i] - step;
    const double below = objective(moved);
    moved.logits[i] = problem.logits[i];
    result[i] = (above - below) / (2 * step);
  }
  return result;
}

// ---- bias ---------------------------------------------------------------------------------------------------------------------

enum class Centring { none, bias, step };

/// b_i += rate * sign(mean - c_i); then the step or the bias has its mean taken away. No counts at all: no step.
inline std::vector<double> next_bias(const std::vector<double>& bias, const std::vector<Int>& counts, double rate,
                                     Centring centring) {
  const Int experts = static_cast<Int>(bias.size());
  const Int all = std::accumulate(counts.begin(), counts.end(), Int{0});
  if (all == 0) return bias;
  std::vector<double> step;
  for (const Int count : counts) step.push_back(all > count * experts ? rate : all < count * experts ? -rate : 0.0);
  const auto centre = [](std::vector<double>& values) {
    const double mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
    for (double& value : values) value -= mean;
  };
  if (centring == Centring::step) centre(step);
  std::vector<double> result;
  for (std::size_t e = 0; e < bias.size(); ++e) result.push_back(bias[e] + step[e]);
  if (centring == Centring::bias) centre(result);
  return result;
}

/// b_i += rate * (mean - c_i) / unit; then the step or the bias has its mean taken away. No counts at all: no step.
enum class Unit { mean_load, total_load, token };
inline std::vector<double> proportional_bias(const std::vector<double>& bias, const std::vector<Int>& counts, double rate,
                                             Unit unit, Centring centring) {
  const double all = static_cast<double>(std::accumulate(counts.begin(), counts.end(), Int{0}));
  if (all == 0) return bias;
  const double mean = all / static_cast<double>(bias.size());
  const double divisor = unit == Unit::mean_load ? mean : unit == Unit::total_load ? all : 1.0;
  std::vector<double> result;
  double steps = 0, sum = 0;
  for (std::size_t e = 0; e < bias.size(); ++e) {
    const double step = rate * (mean - static_cast<double>(counts[e])) / divisor;
    result.push_back(bias[e] + step);
    steps += step;
    sum += result.back();
  }
  const double drift = (centring == Centring::step   ? steps
                        : centring == Centring::bias ? sum
                                                     : 0.0) /
                       static_cast<double>(bias.size());
  for (double& value : result) value -= drift;
  return result;
}

/// As published: d = rate tanh(slope (mean - c) / mean), less its mean where steps are centred; m = momentum m + (1 - momentum) d; b += m.
/// No counts at all: nothing moves.
struct Smebu {
  double rate = 0, momentum = 0, slope = 0;
  Centring centring = Centring::step;

  void step(std::vector<double>& bias, std::vector<double>& m, const std::vector<Int>& counts) const {
    const double all = static_cast<double>(std::accumulate(counts.begin(), counts.end(), Int{0}));
    if (all == 0) return;
    const double mean = all / static_cast<double>(bias.size());
    std::vector<double> d;
    for (const Int count : counts) d.push_back(rate * std::tanh(slope * (mean - static_cast<double>(count)) / mean));
    const auto centre = [](std::vector<double>& values) {
      const double middle = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
      for (double& value : values) value -= middle;
    };
    if (centring == Centring::step) centre(d);
    for (std::size_t e = 0; e < bias.size(); ++e) {
      m[e] = momentum * m[e] + (1 - momentum) * d[e];
      bias[e] += m[e];
    }
    if (centring == Centring::bias) centre(bias);
  }
};

/// The margins of each token that has them, of all its experts: score (or logit, where those rank) without the bias, minus the best score + bias of those
/// that are not among the K best. A token has none where that is not finite, or where a logit is NaN or +infinity. `from_zero`: minus 0 instead.
struct Margins {
  std::vector<std::vector<double>> of_token;
  std::vector<std::vector<double>> size;  ///< |score| + |threshold|, by which they are inexact
};
inline Margins margins(const Problem& problem, bool from_zero = false) {
  Problem without_bias = problem;
  without_bias.bias.clear();
  Margins result;
  for (Int t = 0; t < problem.tokens; ++t) {
    if (!problem.is_active(t)) continue;
    const std::vector<double> ranking = ranking_of_row(problem, t);
    const double threshold =
        from_zero ? 0.0 : ranking[static_cast<std::size_t>(order_of(ranking)[static_cast<std::size_t>(problem.k)])];
    bool is_broken = !std::isfinite(threshold);
    for (int e = 0; e < problem.experts; ++e)
      is_broken = is_broken || !(problem.logit(t, e) < std::numeric_limits<double>::infinity());
    if (is_broken) continue;
    result.of_token.emplace_back();
    result.size.emplace_back();
    for (const double score : ranking_of_row(without_bias, t)) {
      result.of_token.back().push_back(score - threshold);
      result.size.back().push_back(std::abs(score) + std::abs(threshold));
    }
  }
  return result;
}

/// Quantile balancing by exact quantiles: beta = -b goes to momentum beta + (1 - momentum) q, where q is the (T K / E + 1)-th largest of the expert's
/// margins; then the mean is taken away. `margins` [tokens][E].
inline std::vector<double> quantiles(const std::vector<std::vector<double>>& margins, int k, int experts) {
  const std::size_t larger = margins.size() * static_cast<std::size_t>(k) / static_cast<std::size_t>(experts);
  std::vector<double> result;
  for (std::size_t e = 0; e < static_cast<std::size_t>(experts); ++e) {
    std::vector<double> column;
    for (const std::vector<double>& row : margins) column.push_back(row[e]);
    std::sort(column.begin(), column.end(), [](double a, double b) { return a > b; });
    result.push_back(column[larger]);
  }
  return result;
}
inline std::vector<double> quantile_bias(std::vector<double> bias, const std::vector<double>& quantile, double momentum,
                                         Centring centring) {
  double drift = 0;
  for (std::size_t e = 0; e < bias.size(); ++e) {
    const double next = momentum * bias[e] - (1 - momentum) * quantile[e];
    drift += (centring == Centring::none   ? 0.0
              : centring == Centring::bias ? next
                                           : next - bias[e]) /
             static_cast<double>(bias.size());
    bias[e] = next;
  }
  for (double& value : bias) value -= drift;
  return bias;
}

/// b += kp e_n + ki (e_1 + ... + e_n) + kd (e_n - e_(n-1)), from the counts of all steps, e = (mean - c) / mean.
inline std::vector<double> pid_bias(std::vector<double> bias, const std::vector<std::vector<Int>>& counts_per_step,
                                    double kp, double ki, double kd) {
  for (std::size_t e = 0; e < bias.size(); ++e) {
    std::vector<double> errors;
    for (const std::vector<Int>& counts : counts_per_step) {
      const double mean =
          static_cast<double>(std::accumulate(counts.begin(), counts.end(), Int{0})) / static_cast<double>(bias.size());
      errors.push_back((mean - static_cast<double>(counts[e])) / mean);
    }
    for (std::size_t n = 0; n < errors.size(); ++n) {
      bias[e] += kp * errors[n] + kd * (errors[n] - (n == 0 ? 0.0 : errors[n - 1]));
      for (std::size_t i = 0; i <= n; ++i) bias[e] += ki * errors[i];
    }
  }
  return bias;
}

}  // namespace oracle
