// The CUDA engine: the launches of engine/cuda_kernels.cuh. Calls enqueue on the given stream and return: no allocation, no synchronisation, capturable
// in a CUDA graph.
#pragma once

#include <moe_balance/engine/cuda_kernels.cuh>
#include <moe_balance/engine/tuning.hpp>
#include <moe_balance/engine/validate.hpp>
#include <moe_balance/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include <cuda_runtime_api.h>

MOEB_NAMESPACE_BEGIN

inline namespace MOEB_ARCH_LIST_NAME {

MOEB_HIDDEN inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // reported here: the next call must not be blamed for it
  raise<CudaError>(std::string("moe_balance: ") + what + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

}  // namespace MOEB_ARCH_LIST_NAME

inline namespace MOEB_ARCH_NAMESPACE {

/// Calls enqueue on the stream. Errors: CudaError when the device is missing, when an earlier call of anyone left an error other than "not ready", or
/// when a launch fails.
struct MOEB_HIDDEN CudaEngine {
  static constexpr bool serves_float64 = false;
  static constexpr int most_experts = MOE_BALANCE_CUDA_MAX_EXPERTS;

  static void check(const char* call, cudaStream_t /*stream*/) {
    check_no_earlier_error(call);
    int device = 0;
    check_call(cudaGetDevice(&device), call, "finding a CUDA device");
  }

  /// What forward's smallest block needs, its device has: over more than 1024 experts some balancers need more than the 99 KiB of compute
  /// capability 8.6, 8.9 and 12.
  template <class Problem>
  static void check_fits(const char* call, const Problem& problem, cudaStream_t /*stream*/) {
    with_config<compiled_tiers>(problem, [&](auto config) {
      constexpr CudaTier tier = decltype(config)::tier;
      constexpr std::size_t needed = forward_shared_bytes<decltype(problem.balancer), tier>(tier.threads);
      if constexpr (needed > shared_bytes_without_asking) {
        Validator{call}.shared_memory(problem.logits.columns, needed, current_device(call).shared_bytes_of_block());
      }
    });
  }

  static void clear(void* data, std::size_t bytes, cudaStream_t stream) {
    check_no_earlier_error("clearing sums");
    if (bytes != 0) check_cuda(cudaMemsetAsync(data, 0, bytes, stream), "clearing sums");
  }

  /// Clears what a forward adds up in, in one launch.
  static void clear_sums(std::int64_t* words, std::int64_t word_count, std::int64_t* counts, int count_count,
                         cudaStream_t stream) {
    const Device device = current_device("clearing sums");
    constexpr int threads = cuda_launch_tuning.threads_for_sums;
    const std::int64_t useful = (std::max<std::int64_t>(word_count, count_count) + threads - 1) / threads;
    const auto blocks = static_cast<unsigned>(std::clamp<std::int64_t>(useful, 1, device.multiprocessors));
    launch("clearing sums", device, moe_balance_clear<threads>, {.grid = dim3(blocks), .threads = threads}, stream, words,
           word_count, counts, count_count);
  }

  static void copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "copying counts");
  }

  /// Blocks of a forward kernel that clears its sums by itself, because one block has all tokens, or a few that can run as a cluster: what
  /// decoding does. 0 where it cannot.
  template <class Problem>
  [[nodiscard]] static int clearing_blocks(const Problem& problem, cudaStream_t stream) {
    int result = 0;
    with_config<compiled_tiers>(problem, [&](auto config) {
      using Config = decltype(config);
      const GridShape shape(Config::tier, problem.segments, many_blocks);
      if (shape.blocks() == 1 || runs_as_cluster<Config, Problem>(shape, stream)) result = static_cast<int>(shape.blocks());
    });
    return result;
  }

  template <class Real, class Problem>
  static void forward(const Problem& problem, const Totals& totals, cudaStream_t stream) {
    const Device device = current_device("forward");
    with_config<compiled_tiers>(problem, [&](auto config) {
      using Config = decltype(config);
      const auto kernel = forward_kernel_of<Config, Problem>(device);
      const int threads = totals.clearing_blocks > 0 ? Config::tier.threads : forward_threads<Config>(problem, device);
      const std::size_t shared_bytes = forward_shared_bytes<decltype(problem.balancer), Config::tier>(threads);
      const std::int64_t resident =
          device.resident_blocks(Config::tier, forward_kind<Config, Problem>, threads, shared_bytes);
      const dim3 grid = grid_of(GridShape(threads / Config::tier.width, problem.segments, resident));
      launch("launching forward", device, kernel,
             {.grid = grid, .threads = threads, .shared_bytes = shared_bytes, .is_cluster = totals.clearing_blocks > 1},
             stream, problem, totals);
    });
  }

  template <class Real, class Problem>
  static void backward(const Problem& problem, cudaStream_t stream) {
    const Device device = current_device("backward");
    with_config<compiled_tiers>(problem, [&](auto config) {
      using Config = decltype(config);
      constexpr CudaTier tier = Config::tier;
      constexpr std::size_t shared_bytes = backward_shared_bytes<decltype(problem.balancer), Config::index>();
      const dim3 grid = grid_of(
          GridShape(tier, problem.segments, device.resident_blocks(tier, Config::backward, tier.threads, shared_bytes)));
      launch("launching backward", device, moe_balance_backward<Config::index, Config::usual, Problem>,
             {.grid = grid, .threads = tier.threads, .shared_bytes = shared_bytes}, stream, problem);
    });
  }

  /// One kernel, or two where the problem has memory for thresholds and the second is worth it.
  template <class Real, class Problem>
  static void count_margins(const Problem& given, cudaStream_t stream) {
    const Device device = current_device("forward");
    const MarginGrid grid(given.logits, bins_of(given.balancer), device.multiprocessors, device.shared_bytes_of_block(),
                          margin_tuning);
    const bool has_second = grid.counts() && !given.thresholds.empty();
    Problem problem = given;
    if (!has_second) problem.thresholds = {};
    with_tier<compiled_tiers>(static_cast<int>(problem.logits.columns), [&](auto index) {
      constexpr CudaTier tier = cuda_tiers[decltype(index)::value];
      constexpr std::size_t shared_bytes = margin_shared_bytes(tier);
      const std::int64_t resident = device.resident_blocks(tier, KernelKind::any_call, tier.threads, shared_bytes);
      launch("launching the count of margins", device, moe_balance_margins<decltype(index)::value, Problem>,
             {.grid = grid_of(GridShape(tier, Segments({}, problem.logits.rows), resident)),
              .threads = tier.threads,
              .shared_bytes = shared_bytes},
             stream, problem);
    });
    if (has_second) count_from_thresholds(problem, grid, device, stream);
  }

  template <class Problem>
  static void loss(const Problem& problem, cudaStream_t stream) {
    const Device device = current_device("loss");
    launch("launching loss", device, moe_balance_loss<Problem>, {.threads = 32}, stream, problem);
  }

  template <class Problem>
  static void update(const Problem& problem, cudaStream_t stream) {
    const Device device = current_device("update");
    launch("launching update", device, moe_balance_update<Problem>,
           {.grid = dim3(static_cast<unsigned>(problem.load.layers)), .threads = 32}, stream, problem);
  }

  static void publish(std::int64_t* load, std::int64_t* counts, int experts, bool accumulate, cudaStream_t stream) {
    constexpr int threads = cuda_launch_tuning.threads_for_sums;
    const Device device = current_device("forward");
    launch("launching the global batch's counts", device, moe_balance_publish<threads>, {.threads = threads}, stream, load,
           counts, experts, accumulate);
  }

  /// The shape of a launch.
  struct LaunchShape {
    dim3 grid = dim3(1);
    int threads = 1;
    std::size_t shared_bytes = 0;
    bool is_cluster = false;  ///< all of the grid is one
  };

  /// What a launch with attributes needs. Holds what its configuration points to.
  struct Launch {
    cudaLaunchAttribute attributes[2]{};
    cudaLaunchConfig_t config{};

    Launch(const LaunchShape& shape, cudaStream_t stream, bool beside) {
      if (shape.is_cluster) {
        cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim.x = shape.grid.x;
        cluster.val.clusterDim.y = shape.grid.y;
        cluster.val.clusterDim.z = shape.grid.z;
      }
      if (beside) {
        cudaLaunchAttribute& serialization = attributes[config.numAttrs++];
        serialization.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        serialization.val.programmaticStreamSerializationAllowed = 1;
      }
      config.gridDim = shape.grid;
      config.blockDim = dim3(static_cast<unsigned>(shape.threads));
      config.dynamicSmemBytes = shape.shared_bytes;
      config.stream = stream;
      config.attrs = attributes;
    }
    Launch(const Launch&) = delete;
    Launch& operator=(const Launch&) = delete;
  };

  /// What launches depend on.
  struct Device {
    int multiprocessors = 0;
    int capability = 0;

    /// Whether kernels can start while the one before them runs, in captured graphs, too.
    [[nodiscard]] bool runs_beside() const {
      constexpr int first_driver = 12030;
      return capability >= first_capability_with_clusters && driver_version() >= first_driver;
    }

    [[nodiscard]] std::int64_t resident_blocks(const CudaTier& tier, KernelKind kind, int threads,
                                               std::size_t shared_bytes) const {
      const CudaArchitecture architecture = cuda_architecture(capability);
      return std::int64_t{multiprocessors} * moe_balance::resident_blocks(tier, kind, threads, shared_bytes, architecture);
    }
    /// The most that a block may have.
    [[nodiscard]] std::size_t shared_bytes_of_block() const {
      return static_cast<std::size_t>(cuda_architecture(capability).shared_memory - reserved_shared_bytes);
    }

   private:
    [[nodiscard]] static int driver_version() {
      static const int version = [] {
        int driver = 0;
        check_cuda(cudaDriverGetVersion(&driver), "reading the driver's version");
        return driver;
      }();
      return version;
    }
  };

  /// `call`: who asks.
  [[nodiscard]] static Device current_device(const char* call) {
    check_no_earlier_error(call);
    int device = 0;
    check_cuda(cudaGetDevice(&device), "finding the current device");
    const auto read = [&](cudaDeviceAttr attribute) {
      int value = 0;
      check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "reading the device's size");
      return value;
    };
    return {read(cudaDevAttrMultiProcessorCount),
            10 * read(cudaDevAttrComputeCapabilityMajor) + read(cudaDevAttrComputeCapabilityMinor)};
  }

  /// Launches a kernel that waits by itself for the one before it, and may therefore be started while that one ends. Not where the device or the
  /// kernel's code is too old for that.
  template <class... Parameters>
  static void launch(const char* what, const Device& device, void (*kernel)(Parameters...), const LaunchShape& shape,
                     cudaStream_t stream, std::remove_const_t<Parameters>... parameters) {
    const bool beside = device.runs_beside() && is_compiled_for(first_capability_with_clusters, kernel);
    const Launch launch(shape, stream, beside);
    void* arguments[] = {&parameters...};
    check_cuda(cudaLaunchKernelExC(&launch.config, reinterpret_cast<const void*>(kernel), arguments), what);
  }

  /// Whether a kernel's code is for this capability or a later one: earlier code waits for nothing, whatever device it runs on.
  template <class Kernel>
  [[nodiscard]] static bool is_compiled_for(int capability, Kernel kernel) {
    cudaFuncAttributes attributes{};
    check_cuda(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)),
               "reading what a kernel was compiled for");
    return attributes.ptxVersion >= capability;
  }

 private:
  /// check_cuda for one of Router's calls; the text is put together only when there is an error.
  static void check_call(cudaError_t error, const char* call, const char* what) {
    if (error != cudaSuccess) check_cuda(error, (std::string(call) + ": " + what).c_str());
  }

  /// Without a driver every runtime call reports that, this one, too, as if an earlier call had failed.
  /// "Not ready" is what asking for an event or a stream leaves behind, and no failure.
  static void check_no_earlier_error(const char* call) {
    cudaError_t earlier = cudaPeekAtLastError();
    if (earlier == cudaErrorNotReady) {
      (void)cudaGetLastError();
      earlier = cudaSuccess;
    }
    const bool no_device = earlier == cudaErrorInsufficientDriver || earlier == cudaErrorNoDevice;
    check_call(earlier, call, no_device ? "finding a CUDA device" : "an earlier CUDA call had failed before this one");
  }

  [[nodiscard]] static dim3 grid_of(const GridShape& shape) {
    return dim3(static_cast<unsigned>(shape.columns), static_cast<unsigned>(shape.rows), 1);
  }

  /// The second kernel of a count of margins. All the shared memory that the device has, if more than what a kernel has without asking, whatever this call
  /// needs: another thread's call of the same kernel may need more, and must not find less.
  template <class Problem>
  static void count_from_thresholds(const Problem& problem, const MarginGrid& grid, const Device& device,
                                    cudaStream_t stream) {
    const auto kernel = moe_balance_margin_counts<Problem>;
    if (grid.shared_bytes > shared_bytes_without_asking) {
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(device.shared_bytes_of_block())),
                 "reserving shared memory for the count of margins");
    }
    const dim3 blocks(static_cast<unsigned>(grid.token_ranges), static_cast<unsigned>(grid.expert_ranges));
    launch("launching the count of margins", device, kernel,
           {.grid = blocks, .threads = margin_tuning.threads, .shared_bytes = grid.shared_bytes}, stream, problem,
           grid.experts_of_block);
  }

  /// More than a device holds, so that the tokens alone decide.
  static constexpr std::int64_t many_blocks = std::int64_t{1} << 30;

  /// Threads of forward's largest block whose shared memory the device has.
  template <class Config, class Problem>
  [[nodiscard]] static int largest_block(const Device& device) {
    const std::size_t available = device.shared_bytes_of_block();
    int threads = most_forward_threads<Config, Problem>;
    while (threads > Config::tier.threads &&
           forward_shared_bytes<decltype(Problem::balancer), Config::tier>(threads) > available) {
      threads -= Config::tier.threads;
    }
    return threads;
  }

  /// Threads of forward's blocks: as many as still give nearly every multiprocessor a block.
  template <class Config, class Problem>
  [[nodiscard]] static int forward_threads(const Problem& problem, const Device& device) {
    int threads = largest_block<Config, Problem>(device);
    while (threads > Config::tier.threads) {
      const int tiles = threads / Config::tier.width;
      const GridShape shape(tiles, problem.segments, many_blocks);
      const bool fills =
          shape.blocks() * 4 >= std::int64_t{device.multiprocessors} * cuda_launch_tuning.quarters_with_a_block;
      if (tiles <= problem.segments.length && fills) break;
      threads -= Config::tier.threads;
    }
    return threads;
  }

  /// The forward kernel, allowed the shared memory of its largest block.
  template <class Config, class Problem>
  [[nodiscard]] static auto forward_kernel_of(const Device& device) {
    const auto kernel = moe_balance_forward<Config::index, Config::usual, Problem>;
    const std::size_t shared_bytes =
        forward_shared_bytes<decltype(Problem::balancer), Config::tier>(largest_block<Config, Problem>(device));
    if (shared_bytes > shared_bytes_without_asking) {
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
                 "reserving shared memory for forward");
    }
    return kernel;
  }

  /// Whether forward's grid fits a cluster of the current device.
  template <class Config, class Problem>
  [[nodiscard]] static bool runs_as_cluster(const GridShape& shape, cudaStream_t stream) {
    if (shape.blocks() > most_blocks_of_cluster) return false;
    constexpr CudaTier tier = Config::tier;
    constexpr std::size_t shared_bytes = forward_shared_bytes<decltype(Problem::balancer), Config::tier>();
    const Device device = current_device("forward");
    if (device.capability < first_capability_with_clusters) return false;
    if (shape.blocks() > device.resident_blocks(tier, forward_kind<Config, Problem>, tier.threads, shared_bytes))
      return false;
    if (!is_compiled_for(first_capability_with_clusters, forward_kernel_of<Config, Problem>(device))) return false;
    const auto kernel = reinterpret_cast<const void*>(forward_kernel_of<Config, Problem>(device));
    const Launch launch({grid_of(shape), tier.threads, shared_bytes, true}, stream, false);
    int clusters = 0;
    const bool is_known = cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config) == cudaSuccess;
    if (!is_known) (void)cudaGetLastError();  // a device that will not say gets the ordinary launch
    return is_known && clusters > 0;
  }
};

}  // namespace MOEB_ARCH_NAMESPACE

/// All its members are CudaEngine's, whose names carry architectures and experts; this name alone is the same everywhere.
template <>
struct MOEB_HIDDEN Engine<cudaStream_t> : CudaEngine {};

/// Hidden, and named after these: so are, then, Router's calls on a stream.
template <>
struct EngineTag<cudaStream_t> {
  using type = CudaEngine;
};

MOEB_NAMESPACE_END
