// Ids of experts that are spread over ranks: logical experts to physical ones with replicas, a rank's own experts, masks for tensor parallelism, shared
// experts as further slots. Ids are [T, K], -1 for an empty slot, which stays empty in every call. What each rank is sent: dispatch/rank_splits.hpp.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/validate.hpp>
#include <moe_balance/token/elements.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// Which of an expert's replicas a token goes to. The first two serve neighbouring tokens in turns; where an expert's tokens lie at equal distances, as one
/// sequence's do in a token-major batch, all of them may go to one replica.
enum class ReplicaRule : std::uint8_t {
  spread,  ///< (rank + 23333 * token) % replicas (TileKernels): neighbouring tokens go to different ones, ranks start at different ones
  round_robin,  ///< (rank + token) % replicas
  hashed  ///< by a hash of token, rank and expert: even as random numbers are, whatever an expert's tokens have in common
};

/// The arguments of physical_experts.
struct PhysicalExpertsArgs {
  MatrixView<const std::int32_t> experts;              ///< [T, K]: logical ids, -1: empty
  MatrixView<std::int32_t> physical_experts;           ///< [T, K] out
  MatrixView<const std::int32_t> logical_to_physical;  ///< [E, most replicas]: row e starts with the ids of e's replicas
  VectorView<const std::int32_t> replica_count;        ///< [E]: 1 to most replicas
  std::int64_t rank = 0;                               ///< this rank, 0 or more
  std::int64_t first_token = 0;                        ///< the rule's token of row 0
  ReplicaRule rule = ReplicaRule::spread;              ///< which replica a token goes to
  Status* status = nullptr;  ///< optional; on a GPU counts slots whose expert or replicas are invalid: they become -1
};

/// The arguments of local_experts.
struct LocalExpertsArgs {
  MatrixView<const std::int32_t> experts;  ///< [T, K]
  MatrixView<std::int32_t> local_experts;  ///< [T, K] out: id - first_expert inside the range, -1 outside
  int first_expert = 0;                    ///< of this rank
  int expert_count = 0;                    ///< of this rank
  Status* status = nullptr;                ///< optional; on a GPU counts ids below -1, taken as -1
};

/// The arguments of tensor_parallel_mask.
struct TensorParallelMaskArgs {
  MatrixView<const std::int32_t> experts;   ///< [T, K]
  MatrixView<std::int32_t> masked_experts;  ///< [T, K] out: the id where this rank sends the slot, else -1
  int experts_per_rank = 0;                 ///< of expert parallelism
  int tensor_ranks = 1;                     ///< ranks that hold the same tokens
  int tensor_rank = 0;                      ///< this one: it sends what goes to ranks r with r % tensor_ranks == tensor_rank
  Status* status = nullptr;                 ///< optional; on a GPU counts ids below -1, taken as -1
};

/// The arguments of append_shared_experts.
struct SharedExpertsArgs {
  MatrixView<const std::int32_t> experts;  ///< [T, K]
  ConstAnyMatrix weights;                  ///< [T, K]
  MatrixView<std::int32_t> all_experts;    ///< [T, K + S] out
  AnyMatrix all_weights;                   ///< [T, K + S] out, of weights' type
  int first_shared = -1;  ///< required, usually E: shared ids are first_shared, first_shared + 1, ...; no routed id is one
  float weight = 1.0f;    ///< of shared experts, finite; 0 for inactive tokens, whose shared ids are -1
  const std::uint8_t* active = nullptr;  ///< [T], optional: 0 marks a padding token
  Status* status = nullptr;  ///< optional; on a GPU counts ids below -1 and shared ones: they become -1, weight 0
};

/// mapped[t, k] = mapping(id, token), -1 where there is no id. `mapping` returns -2 for what it calls invalid, which is counted and becomes -1.
template <class Mapping>
struct MapIdsProblem {
  MatrixView<const std::int32_t> experts;
  MatrixView<std::int32_t> mapped;
  Mapping mapping;
  std::int64_t* invalid;
};

struct MapIds {
  static constexpr bool uses_shared = false;
  template <class BlockT, class TileT, class Mapping>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& /*tile*/, const MapIdsProblem<Mapping>& problem) const {
    const std::int64_t k = problem.experts.columns;
    for_each_item_of_thread(block, problem.experts.rows * k, [&](std::int64_t slot) MOEB_LAMBDA {
      const std::int64_t token = slot / k;
      const std::int32_t id = problem.experts.data[token * problem.experts.stride + slot % k];
      std::int32_t mapped = id == -1 ? -1 : problem.mapping(id, token);
      if (mapped == -2) {
        if (problem.invalid != nullptr) block.add_global(problem.invalid, 1);
        mapped = -1;
      }
      problem.mapped.data[token * problem.mapped.stride + slot % k] = mapped;
    });
  }
};

/// The mixing function of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
[[nodiscard]] MOEB_INLINE constexpr std::uint64_t mixed(std::uint64_t bits) {
  bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9u;
  bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBu;
  return bits ^ (bits >> 31);
}

struct ToPhysical {
  MatrixView<const std::int32_t> logical_to_physical;
  const std::int32_t* replica_count;
  std::int64_t rank;
  std::int64_t first_token;
  ReplicaRule rule;

  [[nodiscard]] MOEB_INLINE std::int32_t operator()(std::int32_t id, std::int64_t token) const MOEB_LAMBDA {
    if (id < 0 || id >= logical_to_physical.rows) return -2;
    const std::int32_t replicas = replica_count[id];
    if (replicas < 1 || replicas > logical_to_physical.columns) return -2;
    const std::int64_t replica =
        rule == ReplicaRule::hashed ? hashed_replica(id, token, replicas) : replica_in_turn(token, replicas);
    const std::int32_t physical = logical_to_physical.data[id * logical_to_physical.stride + replica];
    return physical >= 0 ? physical : -2;
  }

 private:
  [[nodiscard]] MOEB_INLINE std::int64_t replica_in_turn(std::int64_t token, std::int32_t replicas) const {
    // Both factors are reduced first, so that no token count overflows.
    const std::int64_t step = rule == ReplicaRule::spread ? 23333 % replicas : 1;
    const std::int64_t position = (first_token + token) % replicas;
    return (rank % replicas + step * position) % replicas;
  }
  [[nodiscard]] MOEB_INLINE std::int64_t hashed_replica(std::int32_t id, std::int64_t token, std::int32_t replicas) const {
    const auto of_rank = static_cast<std::uint64_t>(rank) << 32 | static_cast<std::uint32_t>(id);
    const std::uint64_t hash = mixed(mixed(static_cast<std::uint64_t>(first_token + token) + 0x9E3779B97F4A7C15u) ^ of_rank);
    return static_cast<std::int64_t>((hash >> 32) * static_cast<std::uint32_t>(replicas) >> 32);
  }
};

struct ToLocal {
  int first;
  int count;
  [[nodiscard]] MOEB_INLINE std::int32_t operator()(std::int32_t id, std::int64_t /*token*/) const MOEB_LAMBDA {
    if (id < 0) return -2;
    return id >= first && id < first + count ? id - first : -1;
  }
};

struct ToTensorRank {
  int experts_per_rank;
  int ranks;
  int rank;
  [[nodiscard]] MOEB_INLINE std::int32_t operator()(std::int32_t id, std::int64_t /*token*/) const MOEB_LAMBDA {
    if (id < 0) return -2;
    return id / experts_per_rank % ranks == rank ? id : -1;
  }
};

struct SharedExpertsProblem {
  MatrixView<const std::int32_t> experts;
  ConstAnyMatrix weights;
  MatrixView<std::int32_t> all_experts;
  AnyMatrix all_weights;
  int first_shared;
  float weight;
  const std::uint8_t* active;
  std::int64_t* invalid;

  [[nodiscard]] MOEB_INLINE std::int64_t shared_count() const { return all_experts.columns - experts.columns; }
  /// Whether an id is -1 or a routed expert's.
  [[nodiscard]] MOEB_INLINE bool is_routed(std::int32_t id) const {
    return id >= -1 && (id < first_shared || id >= first_shared + shared_count());
  }
};

template <class Real>
struct AppendShared {
  static constexpr bool uses_shared = false;
  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& /*tile*/, const SharedExpertsProblem& problem) const {
    const std::int64_t width = problem.all_experts.columns;
    const std::int64_t routed = problem.experts.columns;
    for_each_item_of_thread(block, problem.all_experts.rows * width, [&](std::int64_t slot) MOEB_LAMBDA {
      const std::int64_t token = slot / width;
      const std::int64_t k = slot % width;
      std::int32_t id = -1;
      Real weight = 0;
      if (k < routed) {
        id = problem.experts.data[token * problem.experts.stride + k];
        if (problem.is_routed(id)) {
          weight = load_element<Real>(problem.weights, token, k);
        } else {
          if (problem.invalid != nullptr) block.add_global(problem.invalid, 1);
          id = -1;
        }
      } else if (problem.active == nullptr || problem.active[token] != 0) {
        id = problem.first_shared + static_cast<std::int32_t>(k - routed);
        weight = static_cast<Real>(problem.weight);
      }
      problem.all_experts.data[token * problem.all_experts.stride + k] = id;
      store_element(problem.all_weights, token, k, weight);
    });
  }
};

namespace detail {

/// Calls f(name, id, token) for every slot where its id can be read before the work.
template <class Place, class Function, class Tag = EngineTagOf<Place>>
void for_each_readable_id(const MatrixView<const std::int32_t>& experts, const Function& f) {
  if constexpr (DispatchEngine<Place>::reads_arguments) {
    for (std::int64_t t = 0; t < experts.rows; ++t) {
      for (std::int64_t k = 0; k < experts.columns; ++k) {
        f(ArgumentName("experts", t * experts.columns + k), experts.data[t * experts.stride + k], t);
      }
    }
  }
}

/// On the CPU ids below -1 are refused before anything is written; on a GPU the kernels take them as -1 and count them.
template <class Place, class Tag = EngineTagOf<Place>>
void refuse_ids_below_empty(const DispatchValidator& check, const MatrixView<const std::int32_t>& experts) {
  for_each_readable_id<Place>(experts, [&](const ArgumentName& name, std::int32_t id, std::int64_t /*token*/) {
    if (id < -1) check.range(name, id, -1, std::numeric_limits<std::int32_t>::max(), "-1: an empty slot");
  });
}

[[nodiscard]] inline std::int64_t* invalid_experts_of(Status* status) {
  return status == nullptr ? nullptr : &status->invalid_experts;
}

template <class Place, class Mapping, class Tag = EngineTagOf<Place>>
void map_ids(const DispatchValidator& check, const MatrixView<const std::int32_t>& experts,
             const MatrixView<std::int32_t>& mapped, const Mapping& mapping, std::int64_t* invalid, const Place& place) {
  const MapIdsProblem<Mapping> problem{experts, mapped, mapping, invalid};
  const LaunchSize size = DispatchEngine<Place>::for_items(experts.rows * experts.columns, place);
  DispatchEngine<Place>::launch(check.call, size, MapIds{}, problem, place);
}

inline void check_ids(const DispatchValidator& check, const MatrixView<const std::int32_t>& experts, const char* name,
                      const MatrixView<std::int32_t>& mapped, Status* status) {
  check.shape("experts", experts, 1, max_experts);
  check.matrix("experts", experts, experts.rows, experts.columns);
  check.matrix(name, mapped, experts.rows, experts.columns);
  check.optional_pointer("status", status, alignof(Status));
  check.apart({region(name, mapped), region("experts", experts), region(status)});
}

/// On the CPU every slot must have a physical expert.
template <class Place, class Tag = EngineTagOf<Place>>
void check_physical(const DispatchValidator& check, const PhysicalExpertsArgs& args, const ToPhysical& mapping) {
  for_each_readable_id<Place>(args.experts, [&](const ArgumentName& name, std::int32_t id, std::int64_t token) {
    if (id == -1 || mapping(id, token) != -2) return;
    check.range(name, id, -1, args.logical_to_physical.rows - 1, "-1: an empty slot");
    check.range({"replica_count", id}, args.replica_count.data[id], 1, args.logical_to_physical.columns,
                "the columns of logical_to_physical");
    const MatrixView<const std::int32_t>& ids = args.logical_to_physical;
    for (std::int64_t replica = 0; replica < args.replica_count.data[id]; ++replica) {
      check.range(ArgumentName("logical_to_physical", id * ids.columns + replica), ids.data[id * ids.stride + replica], 0,
                  std::numeric_limits<std::int32_t>::max(), "a physical expert for each of replica_count");
    }
  });
}

}  // namespace detail

/// Replaces each logical id by one of its expert's replicas. One launch on a GPU. Errors: InvalidArgument before anything is written, on the
/// CPU also for a slot whose expert, replica count or physical id is invalid.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void physical_experts(const PhysicalExpertsArgs& args, Workspace /*workspace*/, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("physical_experts", place);
  const DispatchValidator check{{"physical_experts"}};
  detail::check_ids(check, args.experts, "physical_experts", args.physical_experts, args.status);
  const std::int64_t experts = args.logical_to_physical.rows;
  check.range("logical_to_physical.rows", experts, 1, max_dispatch_experts, "experts");
  check.range("logical_to_physical.columns", args.logical_to_physical.columns, 1, max_dispatch_experts, "replicas");
  check.matrix("logical_to_physical", args.logical_to_physical, experts, args.logical_to_physical.columns);
  check.vector("replica_count", args.replica_count, experts, experts, "the rows of logical_to_physical");
  check.range("rank", args.rank, 0, std::numeric_limits<std::int32_t>::max());
  check.range("first_token", args.first_token, 0, std::int64_t{1} << 62);
  MOEB_EXPECTS(args.rule <= ReplicaRule::hashed, "physical_experts", "rule", static_cast<int>(args.rule),
               "spread, round_robin, hashed");
  check.apart({region("physical_experts", args.physical_experts), region("logical_to_physical", args.logical_to_physical),
               region("replica_count", args.replica_count), region(args.status)});
  const ToPhysical mapping{args.logical_to_physical, args.replica_count.data, args.rank, args.first_token, args.rule};
  detail::check_physical<Place>(check, args, mapping);
  detail::map_ids(check, args.experts, args.physical_experts, mapping, detail::invalid_experts_of(args.status), place);
}

/// Keeps the ids of this rank's experts, counted from its first. One launch on a GPU. Errors: InvalidArgument before anything is written, on the
/// CPU also for an id below -1.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void local_experts(const LocalExpertsArgs& args, Workspace /*workspace*/, const Place& place) {
  DispatchEngine<Place>::check("local_experts", place);
  const DispatchValidator check{{"local_experts"}};
  detail::check_ids(check, args.experts, "local_experts", args.local_experts, args.status);
  check.range("first_expert", args.first_expert, 0, max_dispatch_experts);
  check.range("expert_count", args.expert_count, 1, max_dispatch_experts);
  detail::refuse_ids_below_empty<Place>(check, args.experts);
  detail::map_ids(check, args.experts, args.local_experts, ToLocal{args.first_expert, args.expert_count},
                  detail::invalid_experts_of(args.status), place);
}

/// Keeps the slots that this one of several ranks with the same tokens is to send, so that every slot is sent once. One launch on a GPU.
/// Errors: InvalidArgument before anything is written, on the CPU also for an id below -1.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void tensor_parallel_mask(const TensorParallelMaskArgs& args, Workspace /*workspace*/, const Place& place) {
  DispatchEngine<Place>::check("tensor_parallel_mask", place);
  const DispatchValidator check{{"tensor_parallel_mask"}};
  detail::check_ids(check, args.experts, "masked_experts", args.masked_experts, args.status);
  check.range("experts_per_rank", args.experts_per_rank, 1, max_dispatch_experts);
  check.range("tensor_ranks", args.tensor_ranks, 1, std::numeric_limits<std::int32_t>::max());
  check.range("tensor_rank", args.tensor_rank, 0, args.tensor_ranks - 1);
  detail::refuse_ids_below_empty<Place>(check, args.experts);
  detail::map_ids(check, args.experts, args.masked_experts,
                  ToTensorRank{args.experts_per_rank, args.tensor_ranks, args.tensor_rank},
                  detail::invalid_experts_of(args.status), place);
}

/// Appends shared experts, which every active token uses, as further slots of fixed weight. One launch on a GPU. Errors: InvalidArgument before
/// anything is written, on the CPU also for an id that is below -1 or a shared expert's.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void append_shared_experts(const SharedExpertsArgs& args, Workspace /*workspace*/, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("append_shared_experts", place);
  const DispatchValidator check{{"append_shared_experts"}};
  const std::int64_t tokens = args.experts.rows;
  const std::int64_t k = args.experts.columns;
  check.shape("experts", args.experts, 1, max_experts);
  check.matrix("experts", args.experts, tokens, k);
  check.matrix("weights", args.weights, tokens, k);
  check.range("all_experts.columns", args.all_experts.columns, k + 1, max_experts, "routed and shared");
  check.matrix("all_experts", args.all_experts, tokens, args.all_experts.columns);
  check.matrix("all_weights", args.all_weights, tokens, args.all_experts.columns);
  check.same_type("all_weights", args.all_weights.type, "weights", args.weights.type);
  MOEB_EXPECTS(Engine::serves_float64 || args.weights.type != DataType::float64, "append_shared_experts", "weights.type",
               "float64", "float32, bfloat16, float16; float64 on the CPU only");
  check.finite("weight", args.weight);
  alignas(double) std::byte stored[sizeof(double)];
  const AnyMatrix element(stored, args.weights.type, 1, 1, 1);
  store_element(element, 0, 0, args.weight);
  MOEB_EXPECTS(is_finite(load_element<float>(element, 0, 0)), "append_shared_experts", "weight", std::to_string(args.weight),
               "numbers that are finite in ", name_of(args.weights.type), ", as weights");
  check.range("first_shared", args.first_shared, 0, max_dispatch_experts, "the id of the first shared expert, usually E");
  check.optional_pointer("status", args.status, alignof(Status));
  check.apart({region("all_experts", args.all_experts), region("all_weights", args.all_weights),
               region("experts", args.experts), region("weights", args.weights),
               MemoryRegion("active", args.active, tokens, false), region(args.status)});
  const SharedExpertsProblem problem{
      args.experts,      args.weights, args.all_experts, args.all_weights,
      args.first_shared, args.weight,  args.active,      detail::invalid_experts_of(args.status)};
  detail::for_each_readable_id<Place>(args.experts, [&](const ArgumentName& name, std::int32_t id, std::int64_t /*token*/) {
    if (problem.is_routed(id)) return;
    check.range(name, id, -1, std::numeric_limits<std::int32_t>::max(), "-1: an empty slot");
    fail_argument("append_shared_experts", name, id,
                  {"routed experts' ids: ", args.first_shared, " to ", args.first_shared + problem.shared_count() - 1,
                   " are shared experts'"});
  });
  detail::in_real_type_of<Place>(args.weights.type, [&](auto real) {
    Engine::launch("append_shared_experts", Engine::for_items(tokens * args.all_experts.columns, place),
                   AppendShared<decltype(real)>{}, problem, place);
  });
}

MOEB_NAMESPACE_END
