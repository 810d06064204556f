// Histograms of margins against the oracle's margins.
#pragma once

#include "agreement.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace testing {

/// The bins of a rule: bin b holds margins from edge(b) to below edge(b + 1), the first and the last one also what lies beyond.
struct Bins {
  int count;
  std::function<double(int)> edge;
  std::function<double(double)> resolution;  ///< of float32, at an edge there

  [[nodiscard]] int bin_of(double margin) const {
    int bin = 0;
    while (bin + 1 < count && margin >= edge(bin + 1)) ++bin;
    return bin;
  }
};
/// Those of the library's rules. Octaves: with h bins of either sign, the i-th edge from the middle lies i / h of 22 octaves above 2^-16, evenly inside an octave.
inline Bins bins_of(const mb::MarginScale& rule) {
  if (rule.spacing == mb::MarginBins::even) {
    const double low = static_cast<double>(rule.low), width = (static_cast<double>(rule.high) - low) / rule.bins;
    const auto resolution = [=](double edge) { return 4e-7 * (std::abs(edge) + std::abs(low)); };
    return {rule.bins, [=](int bin) { return low + bin * width; }, resolution};
  }
  const int middle = (rule.bins - 1) / 2;
  return {
      rule.bins,
      [middle](int bin) {
        const int from_middle = bin > middle ? bin - middle - 1 : middle - bin;
        const double octave = 22.0 * from_middle / middle, whole = std::floor(octave);
        const double size = std::pow(2.0, whole - 16) * (1 + octave - whole);
        return bin > middle ? size : -size;
      },
      [](double edge) { return 2e-5 * std::abs(edge); }};  // an octave's number, up to 133, has 17 digits behind the point
}

inline Bins bins_of(const mb::QuantileBias& rule) {
  return bins_of(mb::MarginScale{rule.spacing, rule.low, rule.high, rule.bins});
}
inline Bins bins_of(const mb::ThresholdBias& rule) {
  return bins_of(mb::MarginScale{rule.spacing, rule.low, rule.high, rule.bins});
}

/// `histogram` [E, bins] has one margin of each expert for every token that has margins, each in its bin, but for those that lie at an edge within the
/// resolution: so many may lie on either side of it. (Score, threshold and difference are float32: about 1e-6 of their sizes.)
/// `of_scores`: margins are scores.
inline void check_histogram(const std::vector<std::int64_t>& histogram, const oracle::Problem& problem, const Bins& bins,
                            bool of_scores = false) {
  const oracle::Margins margins = oracle::margins(problem, of_scores);
  const auto experts = static_cast<std::size_t>(problem.experts);
  REQUIRE(histogram.size() == experts * static_cast<std::size_t>(bins.count));
  std::string wrong;
  for (std::size_t e = 0; e < experts; ++e) {
    std::int64_t from_here = 0;  // in this bin and above
    for (int b = bins.count - 1; b >= 0; --b) {
      from_here += histogram[e * static_cast<std::size_t>(bins.count) + static_cast<std::size_t>(b)];
      std::int64_t least = 0, most = 0;
      const double edge = bins.edge(b), resolution_of_edge = bins.resolution(edge);
      for (std::size_t t = 0; t < margins.of_token.size(); ++t) {
        const double margin = margins.of_token[t][e];
        const double resolution = 2e-6 * margins.size[t][e] + resolution_of_edge;
        least += b == 0 || margin >= edge + resolution ? 1 : 0;
        most += b == 0 || margin >= edge - resolution ? 1 : 0;
      }
      if (wrong.empty() && (from_here < least || from_here > most)) {
        wrong = "expert " + std::to_string(e) + " has " + std::to_string(from_here) + " margins from bin " +
                std::to_string(b) + " on, expected " + std::to_string(least) + " to " + std::to_string(most);
      }
    }
  }
  CHECK_MESSAGE(wrong.empty(), wrong);
}

}  // namespace testing
