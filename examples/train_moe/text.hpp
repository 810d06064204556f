// Text of several domains: found on this machine, or in folders that the user named.
#pragma once

#include "options.hpp"

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace train_moe {

/// The bytes of one domain. The last tenth is held out: no training sequence touches it.
struct Domain {
  std::string name;
  std::vector<std::uint8_t> training;
  std::vector<std::uint8_t> validation;
};

/// Sequences of one domain, each `length` bytes, one after the other.
struct Batch {
  std::vector<std::uint8_t> bytes{};
  std::int64_t sequences = 0;
  std::int64_t length = 0;
};

/// Reads all domains. Throws UserError, naming domain and folder, where a folder cannot be read or holds too little text.
[[nodiscard]] std::vector<Domain> load_domains(const Options& options);

/// Sequences from random places of the domain's training part.
[[nodiscard]] Batch random_batch(const Domain& domain, int sequences, int length, std::mt19937_64& random);

/// The same sequences for every caller: evenly spread over the domain's held-out part, at most `sequences` of them.
[[nodiscard]] Batch validation_batch(const Domain& domain, int sequences, int length);

/// Fisher-Yates with a generator that is the same everywhere (std::shuffle may differ between standard libraries).
template <class Element>
void shuffle(std::vector<Element>& elements, std::mt19937_64& random) {
  for (std::size_t i = elements.size(); i > 1; --i) std::swap(elements[i - 1], elements[random() % i]);
}

}  // namespace train_moe
