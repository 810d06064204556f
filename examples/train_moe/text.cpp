#include "text.hpp"

#include "user_error.hpp"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <system_error>

#include <zlib.h>

namespace train_moe {
namespace {

namespace fs = std::filesystem;

/// So that one long file does not become most of a domain.
constexpr std::size_t bytes_per_file = 32 * 1024;

/// Where a domain's text lies.
struct Source {
  std::string name;
  std::vector<fs::path> roots;  ///< folders or files
  std::string extension;        ///< only files that end so; empty: all
  std::string hint;             ///< what to do when there is no text
};

std::vector<fs::path> folders_starting_with(const fs::path& parent, const std::string& prefix) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator entry(parent, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.compare(0, prefix.size(), prefix) == 0 && entry->is_directory(error)) found.push_back(entry->path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::string install_hint(const std::string& packages) {
  return "install " + packages + " or name folders with --domain name=path";
}

std::vector<Source> default_sources() {
  return {{"c++", {"/usr/include/c++"}, "", install_hint("libstdc++-12-dev")},
          {"python", folders_starting_with("/usr/lib", "python3"), ".py", install_hint("python3")},
          {"man-en", folders_starting_with("/usr/share/man", "man"), "", install_hint("manpages and manpages-dev")},
          {"man-de", {"/usr/share/man/de"}, "", install_hint("manpages-de")},
          {"man-fr", {"/usr/share/man/fr"}, "", install_hint("manpages-fr")}};
}

std::vector<Source> sources_of(const Options& options) {
  if (options.domains.empty()) return default_sources();
  std::vector<Source> sources;
  for (const NamedFolder& folder : options.domains) {
    sources.push_back({folder.name, {folder.path}, "", "give a folder with text files"});
  }
  return sources;
}

/// All regular files below a root, links left out (manual pages have many links to one page).
void collect_files(const fs::path& root, const Source& source, std::vector<fs::path>& files) {
  std::error_code error;
  if (fs::is_regular_file(root, error)) {
    files.push_back(root);
    return;
  }
  fs::directory_iterator readable(root, error);  // the recursive one would skip a root without permission and say nothing
  if (error) {
    throw UserError("domain '" + source.name + "': cannot read " + root.string() + ": " + error.message() + "; " +
                    source.hint);
  }
  constexpr auto skip = fs::directory_options::skip_permission_denied;
  for (fs::recursive_directory_iterator entry(root, skip, error), end; !error && entry != end; entry.increment(error)) {
    const fs::path& path = entry->path();
    const bool wanted = source.extension.empty() || path.extension() == source.extension;
    if (wanted && !entry->is_symlink(error) && entry->is_regular_file(error)) files.push_back(path);
  }
}

/// The beginning of a file, plain or gzip (zlib reads both alike); nothing where it cannot be read or is not text.
std::vector<std::uint8_t> read_text(const fs::path& path) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  std::vector<std::uint8_t> text(bytes_per_file);
  const int size = file ? gzread(file.get(), text.data(), static_cast<unsigned>(text.size())) : 0;
  text.resize(static_cast<std::size_t>(std::max(size, 0)));
  const bool binary = std::find(text.begin(), text.end(), std::uint8_t{0}) != text.end();
  return binary ? std::vector<std::uint8_t>{} : text;
}

/// Files in a random order that only the seed decides, so that both parts of the split see all kinds of files.
std::vector<std::uint8_t> read_source(const Source& source, const Options& options) {
  std::vector<fs::path> files;
  for (const fs::path& root : source.roots) collect_files(root, source, files);
  std::sort(files.begin(), files.end());
  std::mt19937_64 random(options.seed);
  shuffle(files, random);
  std::vector<std::uint8_t> text;
  const auto wanted = static_cast<std::size_t>(options.bytes);
  for (const fs::path& path : files) {
    if (text.size() >= wanted) break;
    const std::vector<std::uint8_t> more = read_text(path);
    text.insert(text.end(), more.begin(), more.end());
  }
  text.resize(std::min(text.size(), wanted));
  return text;
}

std::string list_of(const std::vector<fs::path>& roots) {
  std::string list;
  for (const fs::path& root : roots) list += (list.empty() ? "" : ", ") + root.string();
  return list.empty() ? "this machine" : list;
}

Domain split(const Source& source, std::vector<std::uint8_t> text, const Options& options) {
  // The held-out tenth must hold at least one sequence and the byte that follows it.
  const std::size_t least = 10 * (static_cast<std::size_t>(options.context) + 1);
  if (text.size() < least) {
    throw UserError("domain '" + source.name + "': " +
                    (text.empty() ? "no readable text" : "only " + std::to_string(text.size()) + " bytes of text") + " in " +
                    list_of(source.roots) + ", at least " + std::to_string(least) + " bytes are needed; " + source.hint);
  }
  const auto boundary = text.begin() + static_cast<std::ptrdiff_t>(text.size() - text.size() / 10);
  return {source.name, {text.begin(), boundary}, {boundary, text.end()}};
}

void append(Batch& batch, const std::vector<std::uint8_t>& text, std::size_t start) {
  const auto first = text.begin() + static_cast<std::ptrdiff_t>(start);
  batch.bytes.insert(batch.bytes.end(), first, first + batch.length);
  ++batch.sequences;
}

}  // namespace

std::vector<Domain> load_domains(const Options& options) {
  std::vector<Domain> domains;
  for (const Source& source : sources_of(options)) {
    domains.push_back(split(source, read_source(source, options), options));
  }
  return domains;
}

Batch random_batch(const Domain& domain, int sequences, int length, std::mt19937_64& random) {
  Batch batch{.length = length};
  const std::size_t places = domain.training.size() - static_cast<std::size_t>(length) + 1;
  for (int i = 0; i < sequences; ++i) append(batch, domain.training, random() % places);
  return batch;
}

Batch validation_batch(const Domain& domain, int sequences, int length) {
  Batch batch{.length = length};
  const std::size_t fit = domain.validation.size() / static_cast<std::size_t>(length);
  const std::size_t count = std::min(fit, static_cast<std::size_t>(sequences));
  for (std::size_t i = 0; i < count; ++i)
    append(batch, domain.validation, i * fit / count * static_cast<std::size_t>(length));
  return batch;
}

}  // namespace train_moe
