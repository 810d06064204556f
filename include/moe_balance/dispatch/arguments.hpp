// The argument structs of the dispatch calls. All memory is the caller's and lives where the call runs (host or device).
// T = tokens, E = experts, K = slots per token, R = rows, H = hidden size. Slot t * K + k is the k-th choice of token t; row r is a place in the
// order that groups slots by expert. A null pointer or a default view leaves an optional argument out.
#pragma once

#include <moe_balance/views.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// What becomes of rows that hold no slot, when rows are written.
enum class Padding : std::uint8_t {
  zero,      ///< they become 0, so that no stale NaN enters a matrix product over whole blocks
  untouched  ///< they are not written: for experts' kernels that skip rows marked -1
};

/// Neighbouring experts: first to first + count - 1.
struct ExpertRange {
  int first = 0;  ///< 0 or more
  int count = 0;  ///< 0: none

  /// Whether an id is one of them.
  [[nodiscard]] MOEB_INLINE constexpr bool has(std::int64_t expert) const {
    return expert >= first && expert - first < count;
  }
};

/// From expert ids to the order that groups slots by expert; within an expert slots stay in token order. Slots that rows_per_expert leaves without a row
/// are counted nowhere, in status neither: an expert's are what its count exceeds rows_per_expert by.
struct PermutationArgs {
  MatrixView<const std::int32_t> experts{};  ///< [T, K]; -1: an empty slot, which gets no row
  VectorView<std::int64_t> offsets;          ///< [E + 1] out: expert e has the rows offsets[e] to offsets[e + 1] - 1
  MatrixView<std::int64_t> row_of_slot;      ///< [T, K] out; -1: none
  VectorView<std::int64_t> slot_of_row;      ///< [R] out, R >= permutation_rows(...): the slot, -1 in padding rows
  std::int64_t align = 1;                    ///< each expert's rows are padded to a multiple of this
  std::int64_t rows_per_expert =
      0;                       ///< not 0: each expert gets exactly so many rows, and later slots none; a multiple of align
  ExpertRange zero_experts{};  ///< zero-computation experts, fewer than E: their slots get no row and are counted
  std::int64_t* counts = nullptr;  ///< [E] out, optional: slots per expert, those without a row included, padding left out
  std::int64_t block_size = 0;     ///< rows of a block of expert_of_block; a divisor of align (or of rows_per_expert)
  VectorView<std::int32_t>
      expert_of_block{};     ///< [R / block_size] out, optional: the expert of each block of rows, -1: none
  Status* status = nullptr;  ///< optional; on a GPU counts ids outside [-1, E), which are taken as -1
};

/// From slots per expert, which a router counts or other ranks send, to the rows that experts get.
struct ExpertOffsetsArgs {
  VectorView<const std::int64_t> counts;  ///< [E], each 0 to 2^40
  VectorView<std::int64_t> offsets;       ///< [E + 1] out
  std::int64_t align = 1;                 ///< as PermutationArgs::align
  std::int64_t rows_per_expert = 0;       ///< as PermutationArgs::rows_per_expert
  Status* status = nullptr;  ///< optional; on a GPU counts (invalid_rows) counts outside their range, taken as 0
};

/// Rows of hidden states from tokens: permuted[r] = hidden[token of r] (* scale of its slot). With row_of_slot each token is read from memory once,
/// not once for each of its rows; the result is the same. A slot and a row then belong together if row_of_slot and slot_of_row name each other, as
/// permutation leaves them; other rows are padding.
struct PermuteArgs {
  ConstAnyMatrix hidden;                       ///< [T, H]
  VectorView<const std::int64_t> slot_of_row;  ///< [R], from permutation
  AnyMatrix permuted;                          ///< [R, H] out, of hidden's type
  int top_k = 0;                               ///< K, required: no view that has to be given shows it
  ConstAnyMatrix scale{};           ///< [T, K], optional: weights on the experts' inputs (Llama 4); float32 or hidden's type
  Padding padding = Padding::zero;  ///< what becomes of padding rows
  Status* status = nullptr;         ///< optional; on a GPU counts entries of either index outside its range, taken as -1
  MatrixView<const std::int64_t> row_of_slot{};  ///< [T, K], optional, from permutation
};

/// Zero-computation experts that return what they are given (LongCat-Flash's, MoE++'s copy experts): a slot of one of them that has no row stands for
/// weights[t, k] * tokens[t]. Those of a token are added up first, in the order of k, and come last in its sum. Left out where `range.count` is 0 and no
/// view is given.
struct IdentityExperts {
  MatrixView<const std::int32_t> experts{};  ///< [T, K] ids, as given to permutation
  ExpertRange range{};                       ///< which they are
  /// [T, H], of the rows' type: hidden, what the layer is given; in permute_backward grad_combined.
  ConstAnyMatrix tokens{};
  /// [T, K], optional: what they are multiplied by, 1 without; float32 or the rows' type. combine_backward reads none.
  ConstAnyMatrix weights{};
};

/// grad_hidden[t] = sum over k of grad_permuted[row of (t, k)] (* scale), and the gradient of scale.
struct PermuteBackwardArgs {
  ConstAnyMatrix grad_permuted;                ///< [R, H]
  MatrixView<const std::int64_t> row_of_slot;  ///< [T, K], from permutation
  AnyMatrix grad_hidden;                       ///< [T, H] out, of grad_permuted's type
  ConstAnyMatrix scale{};                      ///< as given to permute
  ConstAnyMatrix hidden{};                     ///< [T, H], as given to permute; needed for grad_scale
  AnyMatrix grad_scale{};                      ///< [T, K] out, optional; float32 or grad_permuted's type; 0 for empty slots
  Status* status = nullptr;    ///< optional; on a GPU counts entries of row_of_slot outside [-1, R), taken as -1
  IdentityExperts identity{};  ///< optional: adds their part of grad_hidden, weights[t, k] * grad_combined[t]
};

/// combined[t] = sum over k, in this order, of weights[t, k] * permuted[row of (t, k)]; without weights the plain sum.
struct CombineArgs {
  ConstAnyMatrix permuted;                     ///< [R, H], the experts' outputs
  MatrixView<const std::int64_t> row_of_slot;  ///< [T, K], from permutation
  AnyMatrix combined;                          ///< [T, H] out, of permuted's type
  ConstAnyMatrix weights{};                    ///< [T, K], optional; float32 or permuted's type
  Status* status = nullptr;    ///< optional; on a GPU counts entries of row_of_slot outside [-1, R), taken as -1
  IdentityExperts identity{};  ///< optional: adds weights[t, k] * hidden[t]
};

/// grad_permuted[r] = grad_combined[token of r] * weight of its slot; grad_weights[t, k] = <grad_combined[t], permuted[row of (t, k)]>. A slot and a row
/// belong together if row_of_slot and slot_of_row name each other; other rows are padding.
struct CombineBackwardArgs {
  ConstAnyMatrix grad_combined;                ///< [T, H]
  MatrixView<const std::int64_t> row_of_slot;  ///< [T, K], from permutation
  VectorView<const std::int64_t> slot_of_row;  ///< [R], from permutation
  AnyMatrix grad_permuted;                     ///< [R, H] out, of grad_combined's type
  ConstAnyMatrix weights{};                    ///< as given to combine
  ConstAnyMatrix permuted{};                   ///< [R, H], as given to combine; needed for grad_weights
  AnyMatrix grad_weights{};                    ///< [T, K] out, optional; float32 or grad_combined's type; 0 for empty slots
  Padding padding = Padding::zero;             ///< what becomes of padding rows
  Status* status = nullptr;    ///< optional; on a GPU counts entries of either index outside its range, taken as -1
  IdentityExperts identity{};  ///< optional: grad_weights of their slots is <grad_combined[t], hidden[t]> instead of 0
};

/// How the numbers are distributed: standard Gumbel (mean 0.577, variance pi^2 / 6), or normal with mean 0 and variance 1.
enum class NoiseKind : std::uint8_t { gumbel, normal };

/// Which numbers: a token's are the same whatever the call, the engine, the batch and the rank it is in, as long as this and its own number are.
struct NoiseSource {
  NoiseKind kind = NoiseKind::gumbel;  ///< their distribution
  float scale = 1.0f;                  ///< multiplies all
  std::uint64_t seed = 0;    ///< of the run, and of the layer: layers with one seed and offset have the same numbers
  std::uint64_t offset = 0;  ///< of the step, say
  /// Optional, where the call runs: added to offset, for graphs that are replayed.
  const std::uint64_t* offset_on_device = nullptr;
  std::int64_t first_token = 0;  ///< the number of row 0 among all tokens of the offset, on all ranks: 0 to 2^48 - T
};

/// Which random order slots have where a capacity drops at random: a slot's number is the same whatever the call, the engine, the batch and the rank it is in,
/// as long as this, its token's number and its place among the token's K are. No number of add_noise.
struct RandomPriority {
  std::uint64_t seed = 0;    ///< of the run, and of the layer: layers with one seed and offset have the same order
  std::uint64_t offset = 0;  ///< of the step, say
  /// Optional, where the call runs: added to offset, for graphs that are replayed.
  const std::uint64_t* offset_on_device = nullptr;
  std::int64_t first_token = 0;  ///< the number of row 0 among all tokens of the offset, on all ranks: 0 to 2^48 - T
};

/// The arguments of add_noise. T tokens, E experts.
struct NoiseArgs {
  ConstAnyMatrix logits;  ///< [T, E]
  /// [T, E] out, float32 or logits' type; may be logits itself. Of numbers that a 16-bit type rounds to equal ones the smaller id is chosen.
  AnyMatrix noisy;
  NoiseSource noise{};      ///< which numbers are added
  ConstAnyMatrix scales{};  ///< [T, E], optional: multiplies each number; float32 or logits' type
};

/// The arguments of add_noise_backward.
struct NoiseBackwardArgs {
  ConstAnyMatrix grad_noisy;  ///< [T, E]; it is the gradient of logits, too
  /// [T, E] out: grad_noisy * scale * number; float32 or grad_noisy's type; may be grad_noisy itself.
  AnyMatrix grad_scales;
  NoiseSource noise{};  ///< as given to add_noise
};

/// The arguments of sinkhorn. T tokens, E experts. A logit that is NaN or infinite takes no part, and no token without a finite one.
struct SinkhornArgs {
  ConstAnyMatrix logits;                           ///< [T, E], T up to 2^22
  VectorView<float> log_scale;                     ///< [E] out: log d1, a bias of logits
  float tolerance = 1e-4f;                         ///< of the mean |change of d1|; 0: as many iterations as may be
  int max_iterations = 50;                         ///< 1 to 10000; on a GPU a launch each, which returns at once when done
  const std::uint8_t* active = nullptr;            ///< [T], optional: 0 marks a padding token, which takes no part
  const std::int64_t* tokens_on_device = nullptr;  ///< optional: rows from *tokens_on_device on are treated as inactive
  std::int32_t* iterations = nullptr;              ///< [1] out, optional, where the call runs; 0 where no token takes part
};

/// What an expert's noisy logit has to be above for the expert to be one of the token's K.
enum class WinningLogit : std::uint8_t {
  best_of_others,  ///< the K-th largest noisy logit of the other experts: Shazeer et al. 2017, eq. (8) and (9)
  last_chosen      ///< the K-th largest of all, its own included: V-MoE
};

/// A batch whose experts were chosen by noisy logits, noisy = logits + sigma * normal numbers, as add_noise of NoiseKind::normal leaves them. T tokens, E experts. An
/// expert whose logit, noisy or not, is NaN or infinite takes no part in its token.
struct NoisyChoice {
  ConstAnyMatrix logits;  ///< [T, E], without noise; T up to 2^30
  ConstAnyMatrix noisy;   ///< [T, E], by which the K best were chosen; float32 or logits' type
  int top_k = 0;          ///< K, 1 to E
  float scale = 1.0f;     ///< sigma, or what multiplies `scales` to give it; more than 0, as in NoiseSource
  ConstAnyMatrix
      scales{};  ///< [T, E], optional, as given to add_noise; where sigma is not a finite number above 0 the chosen have probability 1
  WinningLogit winning = WinningLogit::best_of_others;  ///< how a probability is found
  const std::uint8_t* active = nullptr;                 ///< [T], optional: 0 marks a padding token, which counts nowhere
  const std::int64_t* tokens_on_device = nullptr;       ///< optional: rows from *tokens_on_device on are treated as inactive
};

/// Of each expert's load in smooth_load, the value of one token.
inline constexpr std::int64_t smooth_load_unit = std::int64_t{1} << 32;

/// load[e] = sum over tokens of the probability that e is among the K, if its own noise is drawn again.
struct SmoothLoadArgs {
  NoisyChoice choice;             ///< the batch
  VectorView<std::int64_t> load;  ///< [E] out, in units of 1 / smooth_load_unit tokens: sums over calls and ranks are exact
};

/// loss = coefficient * CV^2(load) = coefficient * (E sum load_e^2 / (sum load_e)^2 - 1), 0 where there is no load.
struct LoadLossArgs {
  VectorView<const std::int64_t> load;  ///< [E], of smooth_load; or the sum of several
  VectorView<float> grad_load;          ///< [E] out: d(loss) / d(load_e), by load in tokens
  float coefficient = 0.1f;             ///< multiplies the squared coefficient of variation
  float* loss = nullptr;                ///< [1] out, optional, where the call runs
};

/// From the gradient of each expert's load to those of logits, noisy logits and the noise's scales. noisy counts as an input of its own: its part of the gradients of
/// logits and scales is what add_noise_backward makes of grad_noisy.
struct SmoothLoadBackwardArgs {
  NoisyChoice choice;                 ///< as given to smooth_load
  VectorView<const float> grad_load;  ///< [E], of load_loss; or of a loss of one's own
  AnyMatrix grad_logits{};            ///< [T, E] out, optional; float32 or logits' type, as the others
  AnyMatrix grad_noisy{};   ///< [T, E] out, optional: not 0 for the two experts at most whose logits had to be surpassed
  AnyMatrix grad_scales{};  ///< [T, E] out, optional; only with scales
  const float* grad_loss = nullptr;  ///< [1], optional, where the call runs: multiplies grad_load
  float loss_scale = 1.0f;           ///< multiplies it, too
};

MOEB_NAMESPACE_END
