// Times a router's calls on a GPU with CUDA events, beside a device-to-device copy of as many bytes, in the same run.
//
// One measurement is a batch: [cold: a kernel reads a buffer larger than the L2 cache] [a kernel that waits, so that the host has enqueued
// everything before the first call starts] event, calls, event. A batch whose start event had passed before the host was done is
// measured again after a longer wait, so that launch costs of the host never enter. Warm batches repeat one call on one set of inputs;
// cold ones use each set of inputs once. With Launch::graph the calls are captured into one CUDA graph.
#pragma once

#include "registry.hpp"
#include "step.hpp"

#include <moe_balance/moe_balance.cuh>

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace microbenchmark {

inline constexpr int batches = 40;        ///< measurements of one benchmark
inline constexpr int warm_calls = 20;     ///< calls in a warm batch
inline constexpr int most_cold_sets = 8;  ///< sets of inputs, and calls, in a cold batch of a small problem
inline constexpr double cold_set_bytes =
    1e9;  ///< sets of inputs of a large problem stay below this together, but there are at least 2

enum class Cache : std::uint8_t { warm, cold };
enum class Launch : std::uint8_t { stream, graph };

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

/// Frees what the CUDA runtime handed out.
struct Release {
  void operator()(CUstream_st* stream) const { (void)cudaStreamDestroy(stream); }
  void operator()(CUevent_st* event) const { (void)cudaEventDestroy(event); }
  void operator()(CUgraph_st* graph) const { (void)cudaGraphDestroy(graph); }
  void operator()(CUgraphExec_st* graph) const { (void)cudaGraphExecDestroy(graph); }
};
template <class T>
using Owned = std::unique_ptr<T, Release>;

static __global__ void fill_kernel(void* data, mb::DataType type, std::uint64_t size, std::uint64_t seed) {
  const std::uint64_t step = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += step) {
    store(data, type, i, pseudo_normal(i, seed));
  }
}

/// Reads the whole buffer, so that nothing else stays in the L2 cache; reads, because written lines would have to be written back while
/// the call that is timed runs.
static __global__ void flush_kernel(const uint4* data, std::uint64_t size, unsigned* never_written) {
  unsigned all = 0xffffffffu;
  const std::uint64_t step = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += step) {
    const uint4 value = data[i];
    all &= value.x & value.y & value.z & value.w;
  }
  if (all == 0xffffffffu) *never_written = all;  // the buffer holds zeros
}

static __global__ void wait_kernel(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
}

template <>
struct Filler<cudaStream_t> {
  static void fill(void* data, mb::DataType type, std::size_t size, std::uint64_t seed, cudaStream_t stream) {
    if (size == 0) return;
    fill_kernel<<<1024, 256, 0, stream>>>(data, type, size, seed);
    check(cudaGetLastError(), "filling inputs");
  }
};

/// What one process needs to time calls: a stream, two events and the buffer that clears the L2 cache.
class Timer {
 public:
  Timer() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    stream_.reset(stream);
    start_ = new_event();
    stop_ = new_event();
    int device = 0;
    int cache_bytes = 0;
    check(cudaGetDevice(&device), "finding the current device");
    check(cudaDeviceGetAttribute(&cache_bytes, cudaDevAttrL2CacheSize, device), "reading the size of the L2 cache");
    flush_.emplace(std::max<std::size_t>(std::size_t{64} << 20, 3 * static_cast<std::size_t>(cache_bytes)), stream);
  }

  [[nodiscard]] cudaStream_t stream() const { return stream_.get(); }

  /// Seconds per call of `batches` batches, ascending. `call(i)` enqueues the i-th call of a batch of `calls`.
  template <class Call>
  [[nodiscard]] std::vector<double> seconds(Cache cache, Launch launch, int calls, const Call& call) {
    for (int i = 0; i < calls; ++i) call(i);  // loads the kernels, warms the cache
    const auto all_calls = [&] {
      for (int i = 0; i < calls; ++i) call(i);
    };
    if (launch == Launch::stream) return measure(cache, calls, all_calls);
    const Owned<CUgraphExec_st> graph = captured(all_calls);
    return measure(cache, calls, [&] { check(cudaGraphLaunch(graph.get(), stream()), "launching a graph"); });
  }

  /// Batches that were measured again because the host was late.
  [[nodiscard]] int late() const { return late_; }

 private:
  [[nodiscard]] static Owned<CUevent_st> new_event() {
    cudaEvent_t event = nullptr;
    check(cudaEventCreate(&event), "creating an event");
    return Owned<CUevent_st>(event);
  }

  template <class Enqueue>
  [[nodiscard]] Owned<CUgraphExec_st> captured(const Enqueue& enqueue) const {
    check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "beginning a capture");
    enqueue();
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream(), &graph), "ending a capture");
    const Owned<CUgraph_st> owned(graph);
    cudaGraphExec_t executable = nullptr;
    check(cudaGraphInstantiate(&executable, graph, 0), "instantiating a graph");
    return Owned<CUgraphExec_st>(executable);
  }

  template <class Enqueue>
  [[nodiscard]] std::vector<double> measure(Cache cache, int calls, const Enqueue& enqueue) {
    late_ = 0;
    std::vector<double> result;
    while (result.size() < static_cast<std::size_t>(batches)) {
      if (cache == Cache::cold) {
        flush_kernel<<<1024, 256, 0, stream()>>>(static_cast<const uint4*>(static_cast<const void*>(flush_->data())),
                                                 flush_->bytes() / sizeof(uint4),
                                                 reinterpret_cast<unsigned*>(flush_->data()));
      } else {
        enqueue();
      }
      wait_kernel<<<1, 1, 0, stream()>>>(wait_cycles_);
      check(cudaGetLastError(), "preparing a measurement");
      check(cudaEventRecord(start_.get(), stream()), "recording an event");
      enqueue();
      check(cudaEventRecord(stop_.get(), stream()), "recording an event");
      const bool was_late = cudaEventQuery(start_.get()) == cudaSuccess;
      check(cudaEventSynchronize(stop_.get()), "running the calls");
      (void)cudaGetLastError();  // "not ready" of the query
      if (was_late && wait_cycles_ < most_wait_cycles) {
        wait_cycles_ *= 2;
        ++late_;
        continue;
      }
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, start_.get(), stop_.get()), "reading events");
      result.push_back(1e-3 * static_cast<double>(milliseconds) / calls);
    }
    std::sort(result.begin(), result.end());
    return result;
  }

  static constexpr long long most_wait_cycles = 20'000'000;  // about 10 ms
  long long wait_cycles_ = 100'000;                          // about 50 us
  int late_ = 0;
  Owned<CUstream_st> stream_;
  Owned<CUevent_st> start_;
  Owned<CUevent_st> stop_;
  std::optional<mb::Buffer<std::byte, cudaStream_t>> flush_;
};

[[nodiscard]] inline Timer& timer() {
  static Timer instance;
  return instance;
}

/// Calls of one batch: each on a set of its own when cold.
[[nodiscard]] inline int calls_of(Cache cache, double bytes) {
  if (cache == Cache::warm) return warm_calls;
  return std::clamp(static_cast<int>(cold_set_bytes / std::max(1.0, bytes)), 2, most_cold_sets);
}

/// Bytes per second, reads and writes counted, of a device-to-device copy that moves `bytes` in all; measured as the calls are, once per
/// run, size, cache and launch.
[[nodiscard]] inline double copy_rate(double bytes, Cache cache, Launch launch) {
  static std::map<std::tuple<double, Cache, Launch>, double> known;
  const auto found = known.find({bytes, cache, launch});
  if (found != known.end()) return found->second;
  const std::size_t half = std::max<std::size_t>(16, static_cast<std::size_t>(bytes / 2));
  const int calls = calls_of(cache, bytes);
  const int sets = cache == Cache::cold ? calls : 1;
  std::vector<mb::Buffer<std::byte, cudaStream_t>> from, to;
  for (int set = 0; set < sets; ++set) {
    from.emplace_back(half, timer().stream());
    to.emplace_back(half, timer().stream());
    Filler<cudaStream_t>::fill(from.back().data(), mb::DataType::bfloat16, half / 2, static_cast<std::uint64_t>(set),
                               timer().stream());
  }
  const auto copy = [&](int i) {
    const auto set = static_cast<std::size_t>(i % sets);
    check(cudaMemcpyAsync(to[set].data(), from[set].data(), half, cudaMemcpyDeviceToDevice, timer().stream()), "copying");
  };
  const std::vector<double> seconds = timer().seconds(cache, launch, calls, copy);
  return known[{bytes, cache, launch}] = 2 * static_cast<double>(half) / quantile(seconds, 0.5);
}

/// Times step.run(stream) for steps that `make_step(seed, stream)` makes; each call moves `bytes` and serves `tokens`.
template <class MakeStep>
void time_steps(benchmark::State& state, double bytes, std::int64_t tokens, Cache cache, Launch launch,
                const MakeStep& make_step) {
  guarded(state, [&] {
    const int calls = calls_of(cache, bytes);
    const int sets = cache == Cache::cold ? calls : 1;
    const cudaStream_t stream = timer().stream();
    std::vector<decltype(make_step(std::uint64_t{}, stream))> steps;
    for (int set = 0; set < sets; ++set) steps.push_back(make_step(static_cast<std::uint64_t>(set), stream));
    const std::vector<double> seconds =
        timer().seconds(cache, launch, calls, [&](int i) { steps[static_cast<std::size_t>(i % sets)].run(stream); });
    state.counters["late"] = timer().late();
    std::size_t next = 0;
    for (auto _ : state) state.SetIterationTime(seconds[next++ % seconds.size()]);

    const double median = quantile(seconds, 0.5);
    state.SetItemsProcessed(state.iterations() * tokens);
    state.SetBytesProcessed(static_cast<std::int64_t>(static_cast<double>(state.iterations()) * bytes));
    state.counters["median_us"] = 1e6 * median;
    state.counters["p10_us"] = 1e6 * quantile(seconds, 0.1);
    state.counters["p90_us"] = 1e6 * quantile(seconds, 0.9);
    const double copy = copy_rate(bytes, cache, launch);
    state.counters["copy_bytes_per_second"] = copy;
    state.counters["copy_percent"] = 100 * bytes / median / copy;
  });
}

/// The GPU, its driver and CUDA, or why there is none.
[[nodiscard]] inline Machine gpu_machine() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    (void)cudaGetLastError();
    return {std::string("no CUDA device (") + cudaGetErrorString(error) + ")", {}};
  }
  cudaDeviceProp properties{};
  int driver = 0;
  int runtime = 0;
  check(cudaGetDeviceProperties(&properties, 0), "reading the device's properties");
  check(cudaDriverGetVersion(&driver), "reading the driver's version");
  check(cudaRuntimeGetVersion(&runtime), "reading the runtime's version");
  return {"",
          {{"gpu", properties.name},
           {"multiprocessors", std::to_string(properties.multiProcessorCount)},
           {"l2_bytes", std::to_string(properties.l2CacheSize)},
           {"cuda_of_driver", std::to_string(driver)},
           {"cuda_runtime", std::to_string(runtime)}}};
}

/// Registers a benchmark of the GPU.
template <class Run>
void add_case(const std::string& name, bool by_default, Cache cache, Launch launch, const Run& run) {
  registry().machine = gpu_machine;
  const std::string how = std::string(cache == Cache::warm ? "/warm" : "/cold") + (launch == Launch::graph ? "/graph" : "");
  registry().cases.push_back({name + how, by_default, run, [](benchmark::internal::Benchmark* it) {
                                it->UseManualTime()->Iterations(batches)->Unit(benchmark::kMicrosecond);
                              }});
}

/// Registers one kind of work of a router on the GPU, with a warm and a cold L2 cache, and small calls also in a CUDA graph.
template <class Router>
void add_on_gpu(const std::string& name, const Router& router, Work work, const std::vector<int>& typical) {
  const auto add_one = [&](const Problem& problem, bool by_default, Cache cache, Launch launch) {
    add_case(name_of(problem, name), by_default, cache, launch, [=](benchmark::State& state) {
      time_steps(state, bytes_of(problem, Router::k, router.load_bins()), problem.tokens, cache, launch,
                 [&](std::uint64_t seed, cudaStream_t stream) {
                   return Step<Router, cudaStream_t>(router, problem, seed, stream);
                 });
    });
  };
  for_each_problem(router, work, typical, {16, 64, 8192, 32768}, [&](const Problem& problem, bool by_default) {
    const bool decodes = problem.tokens <= decode_tokens;
    const bool narrow = problem.type != mb::DataType::float32;
    if (decodes) add_one(problem, by_default && !narrow && work != Work::backward, Cache::warm, Launch::graph);
    add_one(problem, by_default && !decodes, Cache::warm, Launch::stream);
    add_one(problem, by_default && (!decodes || !narrow), Cache::cold, Launch::stream);
  });
}

}  // namespace microbenchmark
