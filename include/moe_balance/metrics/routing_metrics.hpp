// What experts are chosen for, and together with whom: numbers for logs and papers, from ids as `route` and `forward` write them. On the host; ids of a GPU
// are copied first. Source of the definitions: OLMoE, arXiv 2409.02060, section 5.
//
//   mb::CoActivation together(experts);
//   together.add(ids);                    // a MatrixView of ids [T, K], of any number of batches
//   together.share(3, 5);                 // of the tokens of expert 3, the share that expert 5 has, too
#pragma once

#include <moe_balance/engine/tuning.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/views.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

MOEB_NAMESPACE_BEGIN

/// \cond
inline void check_expert_count(const char* call, int experts) {
  MOEB_EXPECTS(experts >= 1 && experts <= max_experts, call, "experts", experts, "1 to ", max_experts);
}

// Ids of `experts` experts, or -1; none twice for one token.
inline void check_ids(const char* call, const char* name, const MatrixView<const std::int32_t>& ids, int experts) {
  MOEB_EXPECTS(ids.rows >= 0, call, ArgumentName(name, "rows"), ids.rows, "0 or more");
  MOEB_EXPECTS(ids.columns >= 1 && ids.columns <= max_experts, call, ArgumentName(name, "columns"), ids.columns, "1 to ",
               max_experts);
  MOEB_EXPECTS(ids.rows == 0 || ids.data != nullptr, call, ArgumentName(name, "data"), "null", "a pointer to ids");
  MOEB_EXPECTS(ids.stride >= ids.columns, call, ArgumentName(name, "stride"), ids.stride, ids.columns, " or more");
  for (std::int64_t t = 0; t < ids.rows; ++t) {
    const std::int32_t* const row = ids.data + t * ids.stride;
    for (std::int64_t k = 0; k < ids.columns; ++k) {
      const ArgumentName slot(name, t * ids.columns + k);
      MOEB_EXPECTS(row[k] >= -1 && row[k] < experts, call, slot, row[k], "-1 to ", experts - 1);
      MOEB_EXPECTS(row[k] < 0 || std::find(row, row + k, row[k]) == row + k, call, slot, row[k],
                   "an expert that the token does not have yet");
    }
  }
}
/// \endcond

/// How often experts are chosen together. Co-activation of i and j: tokens that have both / tokens that have i.
class CoActivation {
 public:
  /// Of no tokens yet. Errors: InvalidArgument.
  explicit CoActivation(int experts) : experts_(experts) {
    check_expert_count("CoActivation", experts);
    counts_.assign(static_cast<std::size_t>(experts) * static_cast<std::size_t>(experts), 0);
  }

  /// Adds the tokens of ids [T, K], in host memory; -1 is no choice. Errors: InvalidArgument, and nothing is added.
  void add(const MatrixView<const std::int32_t>& ids) {
    check_ids("CoActivation::add", "ids", ids, experts_);
    for (std::int64_t t = 0; t < ids.rows; ++t) {
      const std::span<const std::int32_t> row(ids.data + t * ids.stride, static_cast<std::size_t>(ids.columns));
      for (const std::int32_t i : row) {
        for (const std::int32_t j : row) {
          if (i >= 0 && j >= 0) ++counts_[cell(i, j)];
        }
      }
    }
  }

  /// Tokens that have both experts; of one and the same, that have it. Errors: InvalidArgument.
  [[nodiscard]] std::int64_t tokens(int expert, int other) const {
    check_expert("expert", expert);
    check_expert("other", other);
    return counts_[cell(expert, other)];
  }
  /// Of the tokens of `expert`, the share that has `other`, too: 0 to 1; 0 where it has no tokens. Not symmetric. Errors: InvalidArgument.
  [[nodiscard]] double share(int expert, int other) const {
    const std::int64_t both = tokens(expert, other);
    return both == 0 ? 0.0 : static_cast<double>(both) / static_cast<double>(counts_[cell(expert, expert)]);
  }

 private:
  [[nodiscard]] std::size_t cell(int i, int j) const {
    return static_cast<std::size_t>(i) * static_cast<std::size_t>(experts_) + static_cast<std::size_t>(j);
  }
  void check_expert(const char* name, int expert) const {
    MOEB_EXPECTS(expert >= 0 && expert < experts_, "CoActivation", name, expert, "0 to ", experts_ - 1);
  }

  int experts_;
  std::vector<std::int64_t> counts_;  // [E, E]
};

/// Which domains (languages, sources, token ids) experts are chosen for. Specialisation of an expert on a domain: tokens of the domain that have the
/// expert / tokens of the domain, which is K / E for an expert that does not care.
class Specialisation {
 public:
  /// Of no tokens yet. Errors: InvalidArgument.
  Specialisation(int experts, int domains) : experts_(experts), domains_(domains) {
    check_expert_count("Specialisation", experts);
    MOEB_EXPECTS(domains >= 1, "Specialisation", "domains", domains, "1 or more");
    counts_.assign(static_cast<std::size_t>(experts) * static_cast<std::size_t>(domains), 0);
    tokens_.assign(static_cast<std::size_t>(domains), 0);
  }

  /// Adds the tokens of ids [T, K], of which `domains` [T] says the domain, -1 for tokens that do not count (padding); both in host memory.
  /// Errors: InvalidArgument, and nothing is added.
  void add(const MatrixView<const std::int32_t>& ids, std::span<const std::int32_t> domains) {
    const char* const call = "Specialisation::add";
    check_ids(call, "ids", ids, experts_);
    MOEB_EXPECTS(static_cast<std::int64_t>(domains.size()) == ids.rows, call, "domains.size", domains.size(), ids.rows,
                 " (the tokens of ids)");
    for (std::size_t t = 0; t < domains.size(); ++t) {
      MOEB_EXPECTS(domains[t] >= -1 && domains[t] < domains_, call, ArgumentName("domains", static_cast<std::int64_t>(t)),
                   domains[t], "-1 to ", domains_ - 1);
    }
    for (std::size_t t = 0; t < domains.size(); ++t) {
      if (domains[t] < 0) continue;
      ++tokens_[static_cast<std::size_t>(domains[t])];
      const std::int32_t* const row = ids.data + static_cast<std::int64_t>(t) * ids.stride;
      for (std::int64_t k = 0; k < ids.columns; ++k) {
        if (row[k] >= 0) ++counts_[cell(row[k], domains[t])];
      }
    }
  }

  /// Tokens of a domain. Errors: InvalidArgument.
  [[nodiscard]] std::int64_t tokens(int domain) const {
    check("domain", domain, domains_);
    return tokens_[static_cast<std::size_t>(domain)];
  }
  /// The share of a domain's tokens that has the expert: 0 to 1, and over all experts K in sum where no slot is empty; 0 for a domain without tokens. Errors: InvalidArgument.
  [[nodiscard]] double share(int expert, int domain) const {
    check("expert", expert, experts_);
    const std::int64_t all = tokens(domain);
    return all == 0 ? 0.0 : static_cast<double>(counts_[cell(expert, domain)]) / static_cast<double>(all);
  }

 private:
  [[nodiscard]] std::size_t cell(int expert, int domain) const {
    return static_cast<std::size_t>(domain) * static_cast<std::size_t>(experts_) + static_cast<std::size_t>(expert);
  }
  static void check(const char* name, int value, int count) {
    MOEB_EXPECTS(value >= 0 && value < count, "Specialisation", name, value, "0 to ", count - 1);
  }

  int experts_;
  int domains_;
  std::vector<std::int64_t> counts_;  // [domains, E]
  std::vector<std::int64_t> tokens_;  // [domains]
};

/// Router saturation: the share of the choices `later` (at the end of training, say) that `earlier` has made for the same tokens already, in whatever
/// order: 0 to 1, and about K / E where both choose at random. Both [T, K], in host memory; -1 is no choice; without choices 1.
/// Errors: InvalidArgument.
[[nodiscard]] inline double router_saturation(const MatrixView<const std::int32_t>& earlier,
                                              const MatrixView<const std::int32_t>& later, int experts) {
  const char* const call = "router_saturation";
  check_expert_count(call, experts);
  check_ids(call, "earlier", earlier, experts);
  check_ids(call, "later", later, experts);
  MOEB_EXPECTS(later.rows == earlier.rows, call, "later.rows", later.rows, earlier.rows, " (the tokens of earlier)");
  std::int64_t choices = 0, kept = 0;
  for (std::int64_t t = 0; t < later.rows; ++t) {
    const std::int32_t* const before = earlier.data + t * earlier.stride;
    for (std::int64_t k = 0; k < later.columns; ++k) {
      const std::int32_t expert = later.data[t * later.stride + k];
      if (expert < 0) continue;
      ++choices;
      if (std::find(before, before + earlier.columns, expert) != before + earlier.columns) ++kept;
    }
  }
  return choices == 0 ? 1.0 : static_cast<double>(kept) / static_cast<double>(choices);
}

MOEB_NAMESPACE_END
