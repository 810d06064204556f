// Saves and loads what training must keep: bias, load and the step. A small binary with a checksum, the same on every machine.
//
// Layout, all little-endian, without gaps:
//   0   8 bytes  "MOEBSTAT"
//   8   uint32   version of the layout: 1; 2 where the bias's rule keeps something
//   12  uint32   experts, E
//   16  uint64   layers, L
//   24  int64    step
//   32  uint32   of version 2 only: values that the rule keeps for each bias, N
//   ..  float32  bias [L, E] and, of version 2, what its rule keeps [N, L, E]
//   ..  int64    load [L, E]
//   ..  uint64   FNV-1a (64 bits) of all bytes before it
//
// Bias is the same on all ranks; load is each rank's own. After Router::update load is 0, so that one file serves all ranks, any number of
// them; in the middle of a step each rank needs its own. Histograms of margins (QuantileBias), which are 0 then, are not saved.
#pragma once

#include <moe_balance/engine/tuning.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/views.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <iosfwd>  // the streams themselves are the caller's to include
#include <limits>
#include <string>

MOEB_NAMESPACE_BEGIN

/// The bytes of a state on their way to or from a stream.
class StateBytes {
 public:
  static constexpr char magic[] = "MOEBSTAT";
  static constexpr std::size_t magic_bytes = 8;
  static constexpr std::size_t header_bytes = 32;
  static constexpr std::uint32_t version = 1;
  static constexpr std::uint32_t version_with_memory = 2;

  /// Bytes before the bias.
  [[nodiscard]] static std::size_t bias_offset(const BiasRef& bias) {
    return header_bytes + (bias.memory > 0 ? sizeof(std::uint32_t) : 0);
  }
  [[nodiscard]] static std::size_t total_bytes(const BiasRef& bias) {
    const auto cells = static_cast<std::size_t>(bias.experts * bias.layers);
    const std::size_t bytes_of_cell = (1 + static_cast<std::size_t>(bias.memory)) * sizeof(float) + sizeof(std::int64_t);
    return bias_offset(bias) + cells * bytes_of_cell + sizeof(std::uint64_t);
  }
  /// The rows of the bias and, behind them, those of what its rule keeps.
  [[nodiscard]] static std::int64_t rows_of(const BiasRef& bias) { return bias.layers * (1 + bias.memory); }

  [[nodiscard]] char* data() { return bytes_.data(); }
  [[nodiscard]] std::size_t size() const { return bytes_.size(); }
  void resize(std::size_t size) { bytes_.resize(size); }

  void append_magic() { bytes_.append(magic, magic_bytes); }
  [[nodiscard]] bool has_magic() const { return bytes_.compare(0, magic_bytes, magic) == 0; }

  template <class Unsigned>
  void append(Unsigned value) {
    for (std::size_t i = 0; i < sizeof(Unsigned); ++i) bytes_.push_back(static_cast<char>(value >> (8 * i)));
  }
  template <class Unsigned>
  [[nodiscard]] Unsigned at(std::size_t offset) const {
    Unsigned value = 0;
    for (std::size_t i = 0; i < sizeof(Unsigned); ++i) value |= static_cast<Unsigned>(Unsigned{byte(offset + i)} << (8 * i));
    return value;
  }

  /// FNV-1a of the first `count` bytes: any change of a single byte changes it.
  [[nodiscard]] std::uint64_t checksum(std::size_t count) const {
    std::uint64_t hash = 14695981039346656037u;
    for (std::size_t i = 0; i < count; ++i) hash = (hash ^ byte(i)) * 1099511628211u;
    return hash;
  }

 private:
  [[nodiscard]] unsigned char byte(std::size_t i) const { return static_cast<unsigned char>(bytes_[i]); }

  std::string bytes_;  // not a vector: files that include this header compile the members of a string for errors anyway
};

/// What save_state and load_state ask of their arguments. Errors: InvalidArgument.
inline void check_state_arguments(const char* call, const BiasRef& bias, const LoadRef& load) {
  MOEB_EXPECTS(bias.data != nullptr, call, "bias.data", "null", "a pointer to the caller's memory, on the host");
  MOEB_EXPECTS(load.counts != nullptr, call, "load.counts", "null", "a pointer to the caller's memory, on the host");
  constexpr std::int64_t most_layers = std::numeric_limits<std::int32_t>::max();
  MOEB_EXPECTS(bias.experts >= 1 && bias.experts <= max_experts && bias.layers >= 1 && bias.layers <= most_layers, call,
               "bias", std::to_string(bias.layers) + " x " + std::to_string(bias.experts), "1 to ", most_layers,
               " layers of 1 to ", max_experts, " experts");
  MOEB_EXPECTS(bias.memory >= 0 && bias.memory <= max_bias_memory, call, "bias.memory", std::to_string(bias.memory), "0 to ",
               max_bias_memory);
  MOEB_EXPECTS(load.bins >= 0 && load.bins <= max_bins, call, "load.bins", std::to_string(load.bins), "0 to ", max_bins);
  MOEB_EXPECTS(load.experts == bias.experts, call, "load.experts", std::to_string(load.experts),
               std::to_string(bias.experts));
  MOEB_EXPECTS(load.layers == bias.layers, call, "load.layers", std::to_string(load.layers), std::to_string(bias.layers));
  const std::string least = std::to_string(bias.experts) + " or more, the experts of a layer";
  MOEB_EXPECTS(bias.stride >= bias.experts, call, "bias.stride", std::to_string(bias.stride), least);
  MOEB_EXPECTS(load.stride >= load.experts, call, "load.stride", std::to_string(load.stride), least);
  if (load.bins == 0) return;
  MOEB_EXPECTS(load.stride >= load.row_size(), call, "load.stride", std::to_string(load.stride),
               std::to_string(load.row_size()) + " or more, what a layer has with its histograms");
  for (std::int64_t l = 0; load.experts_of_layer != nullptr && l < load.layers; ++l) {
    const std::int32_t experts = load.experts_of_layer[l];
    MOEB_EXPECTS(experts >= 1 && experts <= load.experts, call, ArgumentName("load.experts_of_layer", l),
                 std::to_string(experts), "1 to ", load.experts);
  }
}

/// Whether a bias, or what its rule keeps, may be part of a state: an expert whose bias is NaN would never be chosen again, and no update moves it. -infinity
/// closes an expert on purpose.
[[nodiscard]] inline bool may_be_saved(float bias) {
  return bias == bias;
}
/// What is allowed, in errors.
inline constexpr char saved_biases[] = "numbers and infinities";
/// The same of counts.
inline constexpr char saved_counts[] = "0 and more";

/// The counts that a state has of a layer's row: all, or, where histograms lie behind them, those of its own experts.
[[nodiscard]] inline int saved_counts_of(const LoadRef& load, std::int64_t layer) {
  return load.bins == 0 || load.experts_of_layer == nullptr ? load.experts : load.experts_of_layer[layer];
}

/// The experts of a layer; what lies behind a shorter one's counts for nothing.
[[nodiscard]] inline int own_experts_of(const LoadRef& load, std::int64_t layer) {
  if (load.experts_of_layer == nullptr) return load.experts;
  return load.experts_of_layer[layer] < load.experts ? load.experts_of_layer[layer] : load.experts;
}

/// Writes the bias with what its rule keeps and the load, in host memory, and the number of steps done, and flushes the stream, whose header (`fstream`,
/// say) the caller includes. A router without a bias passes a bias of zeros. Errors: InvalidArgument; StateError when the stream does not take it, on a
/// full disk, say, or what the stream itself raises where its exceptions() are on. Histograms of margins must be 0, as after an update: they would be most of the
/// file, and are not saved. A bias of NaN and counts below 0, which no training makes of itself, are refused, too, here and in load_state.
template <class Traits>
void save_state(std::basic_ostream<char, Traits>& out, const BiasRef& bias, const LoadRef& load, std::int64_t step) {
  check_state_arguments("save_state", bias, load);
  for (std::int64_t l = 0; load.bins > 0 && l < load.layers; ++l) {
    for (std::int64_t i = saved_counts_of(load, l); i < load.row_size(); ++i) {
      MOEB_EXPECTS(load.layer(l).counts[i] == 0, "save_state", "load.counts", "margins of a step that is not done",
                   "histograms of 0, as after update: they are not saved");
    }
  }
  for (std::int64_t l = 0; l < StateBytes::rows_of(bias); ++l) {
    for (int e = 0; e < own_experts_of(load, l % load.layers); ++e) {
      MOEB_EXPECTS(may_be_saved(bias.layer(l).data[e]), "save_state", ArgumentName("bias", l * bias.experts + e), "nan",
                   saved_biases);
    }
  }
  for (std::int64_t l = 0; l < load.layers; ++l) {
    for (int e = 0; e < own_experts_of(load, l); ++e) {
      const std::int64_t count = load.layer(l).counts[e];
      MOEB_EXPECTS(count >= 0, "save_state", ArgumentName("load.counts", l * load.experts + e), std::to_string(count),
                   saved_counts);
    }
  }
  StateBytes bytes;
  bytes.append_magic();
  bytes.append(bias.memory > 0 ? StateBytes::version_with_memory : StateBytes::version);
  bytes.append(static_cast<std::uint32_t>(bias.experts));
  bytes.append(static_cast<std::uint64_t>(bias.layers));
  bytes.append(static_cast<std::uint64_t>(step));
  if (bias.memory > 0) bytes.append(static_cast<std::uint32_t>(bias.memory));
  for (std::int64_t l = 0; l < StateBytes::rows_of(bias); ++l) {
    for (int e = 0; e < bias.experts; ++e) bytes.append(std::bit_cast<std::uint32_t>(bias.layer(l).data[e]));
  }
  for (std::int64_t l = 0; l < load.layers; ++l) {
    for (int e = 0; e < load.experts; ++e) bytes.append(static_cast<std::uint64_t>(load.layer(l).counts[e]));
  }
  bytes.append(bytes.checksum(bytes.size()));
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush();
  if (!out) raise<StateError>("moe_balance: save_state: the stream did not take " + std::to_string(bytes.size()) + " bytes");
}

/// Reads the next `count` bytes behind those that `bytes` has; raises StateError where the stream ends before.
template <class Traits>
void read_state_bytes(std::basic_istream<char, Traits>& in, StateBytes& bytes, std::size_t count) {
  const std::size_t before = bytes.size();
  bytes.resize(before + count);
  in.read(bytes.data() + before, static_cast<std::streamsize>(count));
  const auto got = static_cast<std::size_t>(in.gcount());
  if (before + got == 0 && count > 0)
    raise<StateError>("moe_balance: load_state: nothing could be read: the stream is not open, or empty");
  if (got != count) {
    raise<StateError>("moe_balance: load_state: the state ends after " + std::to_string(before + got) +
                      " bytes, of at least " + std::to_string(before + count) + ": it is truncated");
  }
}

/// Reads what save_state wrote into bias and load, in host memory, and returns the step. Reads its own bytes only, so that a state may lie inside a
/// larger file. The caller includes the stream's header. A bias may go on with another rule: `bias.with_memory(0)` takes what a rule without memory saved
/// and leaves the tables behind it, zeros, as they are. Errors: InvalidArgument; StateError for what is no state, of another version or shape, truncated,
/// corrupted, or has a bias of NaN or a count below 0; what the stream itself raises where its exceptions() are on and it ends too early. Nothing is written then.
template <class Traits>
[[nodiscard]] std::int64_t load_state(std::basic_istream<char, Traits>& in, const BiasRef& bias, const LoadRef& load) {
  check_state_arguments("load_state", bias, load);
  const auto fail = [](const std::string& what) { raise<StateError>("moe_balance: load_state: " + what); };
  StateBytes bytes;
  read_state_bytes(in, bytes, StateBytes::header_bytes);
  if (!bytes.has_magic()) fail("this is no state of moe_balance: it does not begin with MOEBSTAT");
  const auto version = bytes.at<std::uint32_t>(8);
  const bool has_memory = version == StateBytes::version_with_memory;
  if (version != StateBytes::version && !has_memory) {
    fail("the state has version " + std::to_string(version) + "; allowed: 1, 2");
  }
  const auto experts = bytes.at<std::uint32_t>(12);
  const auto layers = bytes.at<std::uint64_t>(16);
  if (experts != static_cast<std::uint32_t>(bias.experts) || layers != static_cast<std::uint64_t>(bias.layers)) {
    fail("the state has " + std::to_string(layers) + " layers of " + std::to_string(experts) +
         " experts; allowed: " + std::to_string(bias.layers) + " layers of " + std::to_string(bias.experts));
  }
  if (has_memory) read_state_bytes(in, bytes, sizeof(std::uint32_t));
  const std::uint32_t memory = has_memory ? bytes.at<std::uint32_t>(StateBytes::header_bytes) : 0;
  if (has_memory && memory == 0) fail("the state has version 2 and keeps no values for each bias; allowed: 1 to 8");
  if (memory != static_cast<std::uint32_t>(bias.memory)) {
    fail("the state keeps " + std::to_string(memory) + " values for each bias; allowed: " + std::to_string(bias.memory));
  }
  const std::size_t total = StateBytes::total_bytes(bias);
  read_state_bytes(in, bytes, total - bytes.size());
  const std::size_t checked = total - sizeof(std::uint64_t);
  if (bytes.checksum(checked) != bytes.at<std::uint64_t>(checked))
    fail("the state is corrupted: its checksum does not match");
  const std::int64_t biases = StateBytes::rows_of(bias) * bias.experts;
  std::size_t offset = StateBytes::bias_offset(bias);
  const std::size_t counts_at = offset + static_cast<std::size_t>(biases) * sizeof(float);
  for (std::int64_t i = 0; i < biases; ++i) {
    const std::size_t at = offset + static_cast<std::size_t>(i) * sizeof(float);
    if (i % bias.experts >= own_experts_of(load, i / bias.experts % load.layers)) continue;
    if (may_be_saved(std::bit_cast<float>(bytes.at<std::uint32_t>(at)))) continue;
    fail("bias[" + std::to_string(i) + "] of the state is nan; allowed: " + saved_biases);
  }
  for (std::int64_t i = 0; i < load.layers * load.experts; ++i) {
    const std::size_t at = counts_at + static_cast<std::size_t>(i) * sizeof(std::int64_t);
    const auto count = static_cast<std::int64_t>(bytes.at<std::uint64_t>(at));
    if (count >= 0 || i % load.experts >= own_experts_of(load, i / load.experts)) continue;
    fail("load.counts[" + std::to_string(i) + "] of the state is " + std::to_string(count) + "; allowed: " + saved_counts);
  }

  for (std::int64_t l = 0; l < StateBytes::rows_of(bias); ++l) {
    for (int e = 0; e < bias.experts; ++e, offset += sizeof(float)) {
      bias.layer(l).data[e] = std::bit_cast<float>(bytes.at<std::uint32_t>(offset));
    }
  }
  for (std::int64_t l = 0; l < load.layers; ++l) {
    std::int64_t* const row = load.layer(l).counts;
    for (std::int64_t i = 0; i < load.row_size(); ++i) {
      const std::size_t at = offset + static_cast<std::size_t>(i) * sizeof(std::int64_t);
      row[i] = i < saved_counts_of(load, l) ? static_cast<std::int64_t>(bytes.at<std::uint64_t>(at)) : 0;
    }
    offset += static_cast<std::size_t>(load.experts) * sizeof(std::int64_t);
  }
  return static_cast<std::int64_t>(bytes.at<std::uint64_t>(24));
}

MOEB_NAMESPACE_END
