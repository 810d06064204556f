// Text of one domain: the files below a folder, as symbols.
#pragma once

#include "model.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace example {

struct Domain {
  std::string name;
  std::string path;
};

[[nodiscard]] inline int symbol_of(char byte) {
  const auto code = static_cast<unsigned char>(byte);
  return code >= 32 && code < 127 ? code - 31 : 0;
}

/// At most `limit` symbols of the domain's files, in the order of their names. Raises std::runtime_error where there are too few to train on.
[[nodiscard]] inline std::vector<int> read_domain(const Domain& domain, std::size_t limit) {
  namespace fs = std::filesystem;
  std::vector<fs::path> files;
  std::error_code error;
  if (fs::is_regular_file(domain.path, error)) files.push_back(domain.path);
  for (fs::recursive_directory_iterator entry(domain.path, fs::directory_options::skip_permission_denied, error), end;
       !error && entry != end; entry.increment(error)) {
    if (entry->is_regular_file(error) && !entry->is_symlink(error)) files.push_back(entry->path());
  }
  std::sort(files.begin(), files.end());
  std::vector<int> text;
  for (const fs::path& file : files) {
    std::ifstream in(file, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    for (const char byte : bytes.substr(0, limit / 8)) text.push_back(symbol_of(byte));  // no file is most of a domain
    if (text.size() >= limit) break;
  }
  text.resize(std::min(text.size(), limit));
  if (text.size() < 4096) {
    throw std::runtime_error("domain '" + domain.name + "': " + domain.path + " has " + std::to_string(text.size()) +
                             " bytes of text; needed: 4096");
  }
  return text;
}

/// `tokens` positions of the text from a random stream that `seed` continues.
[[nodiscard]] inline Batch sample(const std::vector<int>& text, int tokens, std::uint64_t& seed) {
  Batch batch;
  for (int t = 0; t < tokens; ++t) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const auto at = static_cast<std::size_t>((seed >> 33) % (text.size() - context));
    for (std::size_t c = 0; c < context; ++c) batch.before.push_back(text[at + context - 1 - c]);
    batch.next.push_back(text[at + context]);
  }
  return batch;
}

}  // namespace example
