// The tuning numbers of the engines, with their reasons. Elsewhere are what follows from a lane's registers (engine/kernel_config.hpp) and how many keys a
// lane knows (PackedSelection: numeric/ cannot include this file).
#pragma once

#include <moe_balance/config.hpp>

#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// The most experts that any engine serves.
inline constexpr int max_experts = 2048;

/// The CPU engine.
struct HostTuning {
  /// Fewest logits worth a second thread, and as many for each further one: forward of 131072 took two threads of a virtual machine four tenths longer than one,
  /// of 1048576 six tenths of the time (docs/performance.md, "On an older processor"). Other machines, and backward, have not been measured.
  std::int64_t logits_per_thread = 196608;
  /// The same for threads of an executor, which are there already: two of OpenMP's took 0.6 to 0.7 of one's time for 65536 logits, the fewest timed (docs/performance.md,
  /// "Threads of the program's own"). Smaller work is a risk: threads that the system has put on one core wait for each other for milliseconds.
  std::int64_t logits_per_executor_part = 65536;
  /// How far ahead a backward pass asks for the few logits it reads, which lie apart: 4 to 16 were equally good, 1 took nearly twice as long.
  std::int64_t tokens_ahead = 8;
  /// How far ahead of the row that it loads a forward pass asks for the next ones: 2 to 4 were equally good, 1 took 5% longer, 0 a fifth,
  /// measured when tokens went one by one.
  std::int64_t rows_ahead = 2;
  /// Tokens whose forward passes go step by step together. At 256 experts two at a time took 8 to 14% longer, one a quarter, eight about a tenth (their rows
  /// leave the first-level cache): bench/router_cpu, AMD EPYC (family 25, model 17), 2026-11-27, command in docs/design.md, Speed.
  int tokens_together = 4;
  /// Most experts whose tokens go side by side instead, if policies allow (at most NumbersOfExperts::capacity): 128 took 0.93 (K = 1) to 1.66 times (K = 8)
  /// as long as rows, 64 0.6 to 0.7 (docs/design.md, Speed).
  int experts_side_by_side = 64;
  /// The same where losses have a selection of their own, of more than so many: with it top-8 of 64, beside a bias, took 1.05 to 1.2 times as long as rows,
  /// which fill their blocks then (bench/router_cpu, sigmoid_top8_bias_plain); fewer experts, or top-4, took no longer than rows (docs/design.md, "Losses side by side").
  int experts_selected_twice = 63;
  int few_picks = 4;
  /// Most bytes of float32 logits and their gradients with which backward passes that touch only the chosen go side by side for more experts, too: 8 MiB each
  /// took 0.8 of the rows' time, 16 MiB each, the third-level cache's size, and more 1.1 to 1.3 times as long (256 experts; 512 and 1024: 0.9 to 1.0). Elements
  /// of two bytes took 0.8 of it and less whatever their number (docs/design.md, Speed).
  std::int64_t bytes_side_by_side = std::int64_t{24} << 20;
  /// Most memory in which a thread counts margins for itself.
  std::size_t most_margin_bytes = std::size_t{1} << 20;
  /// Least stack of a thread that a call starts: three times the 336 KiB that a part may need (tests/stack_test.cpp).
  std::size_t thread_stack_bytes = std::size_t{1} << 20;
};
inline constexpr HostTuning host_tuning{};

/// Permuting slots and rows (dispatch/), on both engines. Guesses, but where a figure stands.
struct DispatchTuning {
  /// Slots of a part (a GPU's block, which reads the counts of all ranges): 8192 tokens of 8 slots take 128 blocks 17.1 us of route_and_permute on an H100
  /// and 64 blocks 17.7. Fewer are one part.
  std::int64_t slots_per_part = 512;
  std::int64_t slots_of_parts = 2048;
  std::int64_t most_parts = 128;
  /// Rows, most of them padding, that are worth a block of a permutation of few slots.
  std::int64_t rows_per_marking_block = 2048;
  /// Blocks of the kernel that routes and counts, nearly one for each multiprocessor of an H100, with the threads of several blocks of their tier where that
  /// has room for them (has_room_for_large_routing_blocks) and the device as many multiprocessors; otherwise several times as many with the threads of
  /// one. Fewer where they would have fewer tokens than this.
  std::int64_t most_routing_blocks = 128;
  /// Several: as many as registers and tokens are enough for. 8192 tokens on an H200: 768 threads 15.2 us of route_and_permute, 512 15.6 (docs/design.md, "Stamps of the clock").
  int most_tier_blocks_of_routing_block = 3;
  int small_routing_blocks_of_large = 2;
  std::int64_t tokens_per_routing_block = 16;
  /// A part counts in 32 bits.
  std::int64_t most_slots_per_part = std::int64_t{1} << 30;
  /// A GPU's block: eight warps.
  int tiles = 8;
  /// One that counts and ranks slots: sixteen, or eight where it has so few slots that sixteen mostly do the same: 8192 tokens of 8 slots, 512 a block, took
  /// 13.8 us of route_and_permute on an H200 with eight and 14.3 with sixteen, 32768 tokens 32.2 and 31.9 (there, too). Four where the counts of so many experts would not
  /// fit shared memory.
  int tiles_that_rank = 16;
  std::int64_t slots_of_few_tiles = 512;
  int tiles_for_many_experts = 4;
  int many_experts = 2048;
  int blocks_per_multiprocessor = 8;
  /// Blocks of eight warps that registers must leave room for: 80 registers per thread; of sixteen, one with up to 128.
  int blocks_with_registers = 3;
  /// What a lane of a permutation loads before it waits: slots' ids; tiles' counts of an expert; rows of the histogram, of which it takes eight counts each.
  int ids_at_once = 4;
  int tile_counts_at_once = 4;
  int rows_at_once = 8;
  /// What a lane that moves a row loads before it writes: packs of 16 bytes. 65536 rows of 4 KiB on an H100: permute and combine's backward pass, then two
  /// kernels, took 221 and 346 us with one, 215 and 371 with eight, 207 and 325 with four and stores past the cache.
  int packs_at_once = 4;
  /// Counters whose random numbers a CPU's thread finds together; four numbers each.
  int counters_at_once = 8;
  /// Most groups of threads that share the rows of the histogram.
  int most_groups = 16;
  /// Rows of more bytes are written past a CPU's cache, if by slots. 64 MiB of rows of 2 KiB took two threads of an AMD EPYC with 32 MiB of third-level cache
  /// 0.57 of the time, and reading them then as long as before; 32 MiB, of which the reader still finds a part in the cache, gained 0.6 to 1.3 ms and lost 0.5.
  std::int64_t bytes_in_cache = std::int64_t{32} << 20;
  std::int64_t least_row_bytes_past_cache = 512;  ///< rows of 512 gained as much, shorter ones were not timed
  /// Fewest elements of rows, and fewest slots, worth a further CPU thread.
  std::int64_t elements_per_thread = 65536;
  std::int64_t slots_per_thread = 16384;
  /// Sorting on the CPU: bits of a pass, so that a part's counts stay in the first-level cache, and most parts.
  int sort_bits = 11;
  std::int64_t most_sort_parts = 16;
  /// Scratch of a sort and a scan, of bytes and of bytes per slot and expert: what CUB asks for is less, and checked before each call.
  std::size_t sort_scratch_bytes = std::size_t{1} << 18;
  std::size_t sort_scratch_bytes_per_item = 2;
};
inline constexpr DispatchTuning dispatch_tuning{};

/// Launches of the CUDA engine.
struct CudaLaunchTuning {
  /// Threads of a block that clears or publishes sums.
  int threads_for_sums = 256;
  /// Rows of sums that a thread of forward reads before it adds: a guess.
  int rows_of_sums_at_once = 4;
  /// Forward's blocks are as large as still gives this share of the multiprocessors, in quarters, a block: nearly all have work then.
  int quarters_with_a_block = 3;
  /// The second kernel of a permutation is started beside the first where it has at most one block for so many multiprocessors: of more, some would start where
  /// there is room first, and share a multiprocessor while others have none.
  int multiprocessors_per_block_beside = 1;
};
inline constexpr CudaLaunchTuning cuda_launch_tuning{};

/// Counting margins on a GPU. Guesses: nothing of it has been timed.
struct MarginTuning {
  /// Fewest margins, of all tokens and experts, that are worth a second kernel: an H200 added 50000 a microsecond to memory (forward of 8192 tokens of 256 experts
  /// took 51.4 us with them and 9.7 without, docs/performance.md), and a launch takes two or three.
  std::int64_t least_margins = 131072;
  /// Fewest tokens, for each bin, of a block and so of a call with a second kernel: a block adds each cell to memory once, at most half as often as its experts
  /// have margins.
  std::int64_t tokens_per_bin = 2;
  /// A block counts in 32 bits.
  std::int64_t most_tokens = std::int64_t{1} << 30;
  /// What a block reads of a row of logits: memory is read in sectors of so many bytes.
  int bytes_of_row = 32;
  /// Large blocks, and one for each multiprocessor: the fewer, the fewer cells are added to memory.
  int threads = 1024;
  int blocks_per_multiprocessor = 1;
  /// What a thread loads before it waits.
  int tokens_at_once = 4;
};
inline constexpr MarginTuning margin_tuning{};

/// The most experts, replicas counted apart, that tokens are dispatched to.
inline constexpr int max_dispatch_experts = 1 << 20;
/// The most whose slots a permutation counts, because a block's shared memory holds their counts (160 KiB of the 163 KiB that sm_80 has). The slots
/// of more are sorted.
inline constexpr int max_counted_experts = 4096;
/// The most replicas that place_experts places. A step looks at the busiest rank's experts against all places, and there are about as many steps as
/// moves; with `previous` up to 256 bounds have some of their own. bench/placement_time.cpp, g++ 12.2 -O2, AMD EPYC (family 25, model 17),
/// 2026-11-28, other work on its second core, CPU seconds: 256 experts on 288 places of 32 ranks 0.002 s, with `previous` 0.02 to 0.03; 1024 places 0.05 to 0.09 and
/// 0.3 to 0.5; 4096 places 0.2 to 1.2 and 0.4 to 17.
inline constexpr int max_placed_experts = 4096;
/// Bounds on an old placement's moves that are all tried; above, half as many to each doubling (docs/design.md, Dispatch).
inline constexpr int placement_bounds_all_tried = 64;

/// A CUDA kernel is compiled per tier: experts up to `max_experts`, `width` lanes per token, so that a lane holds max_experts / width
/// scores in registers.
struct CudaTier {
  int max_experts;
  int width;
  int threads;        ///< per block
  int blocks_per_sm;  ///< what registers must leave room for, and the persistent grid's size where shared memory has room, too
  /// The same for usual calls (engine/usual_call.hpp), whose kernels need fewer registers; 0: the tier has none.
  int usual_forward_blocks;
  int light_forward_blocks;  ///< where a token's state is small, see is_light
  int usual_backward_blocks;
  /// Whether one block of usual forward may have the place of so many, because each adds its sums to those in global memory. 32768 tokens of 256
  /// experts on an H100: 27.0 us with 256 threads, 26.5 with 512, 24.9 with 1024, which leave too few registers; 64 tokens 4.1, 4.9 and 6.6.
  bool merges_blocks;
  bool private_rows;  ///< probability sums in shared memory: more than 16 per lane would not fit registers
};

/// Whether a block that routes and counts has the threads of several: the next kernel then has fewer rows of counts to read. Not where shared memory has
/// room for the rows of one only.
[[nodiscard]] constexpr bool has_room_for_large_routing_blocks(const CudaTier& tier) {
  return !tier.private_rows;
}

/// 32: Mixtral (8), Switch, small research models. 64: OLMoE, DeepSeek-V2-Lite. 128: Qwen3, gpt-oss. 256: DeepSeek-V3, DeepSeek-V2 (160),
/// GLM-4.5 (160). 512: Kimi K2 (384), Qwen3-Next. 1024: Kimi K3 (896). 2048: research.
/// Eight scores per lane keep 16-byte loads full and the state of a token inside 64 registers. Twice as many for 64 to 256 experts were slower on an
/// H100: forward of 32768 tokens of 256 experts took 53.1 us instead of 45.5.
inline constexpr CudaTier cuda_tiers[] = {
    {32, 8, 256, 2, 3, 3, 4, false, false},   {64, 8, 256, 2, 3, 3, 4, false, false},
    {128, 16, 256, 2, 3, 3, 4, false, false}, {256, 32, 256, 2, 2, 3, 4, true, false},
    {512, 32, 256, 1, 2, 2, 2, true, false},  {1024, 32, 128, 2, 0, 0, 0, false, true},
    {2048, 32, 128, 2, 0, 0, 0, false, true},
};

inline constexpr int most_experts_of_large_routing_blocks = [] {
  int most = 0;
  for (const CudaTier& tier : cuda_tiers) {
    if (has_room_for_large_routing_blocks(tier)) most = tier.max_experts;
  }
  return most;
}();

/// Which of a tier's kernels.
enum class KernelKind : std::uint8_t { any_call, usual_forward, light_forward, usual_backward };

[[nodiscard]] constexpr int blocks_per_sm(const CudaTier& tier, KernelKind kind) {
  return kind == KernelKind::any_call        ? tier.blocks_per_sm
         : kind == KernelKind::usual_forward ? tier.usual_forward_blocks
         : kind == KernelKind::light_forward ? tier.light_forward_blocks
                                             : tier.usual_backward_blocks;
}

/// The most registers a thread of a tier's kernels may have: what lets `blocks_per_sm` blocks share the 65536 registers of an SM (allocated to a
/// warp in units of 256, so to a thread in eights), and never more than the 255 that an instruction can name.
[[nodiscard]] constexpr int register_budget(const CudaTier& tier, KernelKind kind) {
  constexpr int registers_per_sm = 65536;
  constexpr int most = 255;
  const int share = registers_per_sm / (tier.threads * blocks_per_sm(tier, kind)) / 8 * 8;
  return share < most ? share : most;
}

/// What the blocks of one multiprocessor share. CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
struct CudaArchitecture {
  int capability;     ///< 10 * major + minor
  int shared_memory;  ///< bytes of a multiprocessor
};
inline constexpr int reserved_shared_bytes = 1024;  ///< that the system takes from each block's
/// What a kernel's blocks may have without asking for more (CUDA C++ Programming Guide, "Shared Memory").
inline constexpr int shared_bytes_without_asking = 48 * 1024;
inline constexpr int shared_bytes_unit = 128;  ///< what shared memory is allocated in

/// In order; one that is not listed has what the last one below it has.
inline constexpr CudaArchitecture cuda_architectures[] = {
    {75, 64 * 1024},  {80, 164 * 1024}, {86, 100 * 1024},  {87, 164 * 1024},
    {89, 100 * 1024}, {90, 228 * 1024}, {120, 100 * 1024},
};
[[nodiscard]] constexpr CudaArchitecture cuda_architecture(int capability) {
  CudaArchitecture result = cuda_architectures[0];
  for (const CudaArchitecture& known : cuda_architectures) result = known.capability <= capability ? known : result;
  return result;
}

/// Blocks of `threads` threads, a multiple of the tier's, that a multiprocessor is given: the tier's, or as many as its shared memory holds.
[[nodiscard]] constexpr int resident_blocks(const CudaTier& tier, KernelKind kind, int threads, std::size_t shared_bytes,
                                            const CudaArchitecture& architecture) {
  const int bytes = static_cast<int>(shared_bytes) + reserved_shared_bytes;
  const int held = architecture.shared_memory / ((bytes + shared_bytes_unit - 1) / shared_bytes_unit * shared_bytes_unit);
  const int wanted = blocks_per_sm(tier, kind) * tier.threads / threads;
  return held < 1 ? 1 : held < wanted ? held : wanted;
}

/// The largest cluster that every device has from compute capability 9.0 on ("Thread Block Clusters" in the guide): its blocks run at the same time
/// and can wait for each other.
inline constexpr int most_blocks_of_cluster = 8;
inline constexpr int first_capability_with_clusters = 90;

inline constexpr int cuda_tier_count = sizeof(cuda_tiers) / sizeof(cuda_tiers[0]);
static_assert(cuda_tiers[cuda_tier_count - 1].max_experts == max_experts);
/// Tiers, the first of all, that have kernels for usual calls.
inline constexpr int usual_tier_count = [] {
  int count = 0;
  while (count < cuda_tier_count && cuda_tiers[count].usual_forward_blocks > 0) ++count;
  return count;
}();

MOEB_NAMESPACE_END
