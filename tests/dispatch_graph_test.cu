// CONTRACT.md lines 12 and 13 for dispatch on a GPU: its calls only enqueue, so that a CUDA graph captures a whole layer's, and one graph serves new
// routings and batch sizes.
#include "cuda_graph.cuh"
#include "engine_host.hpp"

#include "bodies/forward_and_permute.hpp"
#include "dispatch_run.hpp"

#include <moe_balance/dispatch/many_experts.cuh>

namespace testing {

namespace {

/// Memory of a layer without experts: logits to ids to rows, hidden states there and back, and the backward passes.
struct GraphLayer {
  static constexpr int k = 4;
  static constexpr std::int64_t align = 16;
  template <class T>
  using Array = CudaEngine::Array<T>;

  CudaEngine engine;
  std::int64_t tokens;
  int experts;
  std::int64_t hidden;
  std::int64_t rows;
  mb::Router<mb::Sigmoid, mb::TopK<k>, mb::AuxLoss> router{};
  Array<float> logits, weights;
  Array<std::int32_t> ids;
  Array<std::int64_t> saved, token_count, offsets, row_of_slot, slot_of_row, scratch;
  Array<float> states, permuted, combined, grad_permuted, grad_weights, grad_states;

  GraphLayer(std::int64_t all_tokens, int expert_count, std::int64_t hidden_size)
      : tokens(all_tokens),
        experts(expert_count),
        hidden(hidden_size),
        rows(mb::permutation_rows(tokens, k, experts, align)),
        logits(floats(tokens * experts)),
        weights(floats(tokens * k)),
        ids(engine, std::vector<std::int32_t>(size(tokens * k), 77)),
        saved(longs(static_cast<std::int64_t>(router.saved_bytes({tokens, experts}) / 8))),
        token_count(longs(1)),
        offsets(longs(experts + 1)),
        row_of_slot(longs(tokens * k)),
        slot_of_row(longs(rows)),
        scratch(longs(static_cast<std::int64_t>(mb::route_and_permute_workspace_bytes(router, {tokens, experts}) / 8 + 2))),
        states(floats(tokens * hidden)),
        permuted(floats(rows * hidden)),
        combined(floats(tokens * hidden)),
        grad_permuted(floats(rows * hidden)),
        grad_weights(floats(tokens * k)),
        grad_states(floats(tokens * hidden)) {}

  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }
  [[nodiscard]] Array<float> floats(std::int64_t n) const { return Array<float>(engine, std::vector<float>(size(n), 7.0f)); }
  [[nodiscard]] Array<std::int64_t> longs(std::int64_t n) const {
    return Array<std::int64_t>(engine, std::vector<std::int64_t>(size(n), 77));
  }

  /// New logits and hidden states in the same memory.
  void fill(std::uint64_t seed, std::int64_t active) {
    Random random(seed);
    copy(logits, random.normals<float>(size(tokens * experts)));
    copy(states, random.normals<float>(size(tokens * hidden)));
    copy(token_count, std::vector<std::int64_t>{active});
  }
  template <class T>
  void copy(Array<T>& to, const std::vector<T>& from) {
    engine.upload(to.data(), from.data(), from.size() * sizeof(T));
  }

  void enqueue() {
    const auto place = engine.place();
    const mb::Workspace workspace{scratch.data(), mb::route_and_permute_workspace_bytes(router, {tokens, experts})};
    const mb::MatrixView<std::int64_t> rows_of(row_of_slot.data(), tokens, k);
    const mb::VectorView<std::int64_t> slots_of(slot_of_row.data(), rows);
    const auto matrix = [&](Array<float>& values, std::int64_t count) {
      return mb::MatrixView<float>(values.data(), count, hidden);
    };
    const mb::MatrixView<float> weight_view(weights.data(), tokens, k);
    mb::forward_and_permute(router,
                            {.logits = mb::MatrixView<float>(logits.data(), tokens, experts),
                             .experts = {ids.data(), tokens, k},
                             .weights = weight_view,
                             .saved = {saved.data(), router.saved_bytes({tokens, experts})},
                             .tokens_on_device = token_count.data()},
                            {.experts = {},
                             .offsets = {offsets.data(), experts + 1},
                             .row_of_slot = rows_of,
                             .slot_of_row = slots_of,
                             .align = align},
                            workspace, place);
    mb::permute({.hidden = matrix(states, tokens),
                 .slot_of_row = slots_of,
                 .permuted = matrix(permuted, rows),
                 .top_k = k,
                 .row_of_slot = rows_of},
                {}, place);
    mb::combine({.permuted = matrix(permuted, rows),
                 .row_of_slot = rows_of,
                 .combined = matrix(combined, tokens),
                 .weights = weight_view},
                {}, place);
    mb::combine_backward({.grad_combined = matrix(combined, tokens),
                          .row_of_slot = rows_of,
                          .slot_of_row = slots_of,
                          .grad_permuted = matrix(grad_permuted, rows),
                          .weights = weight_view,
                          .permuted = matrix(permuted, rows),
                          .grad_weights = mb::MatrixView<float>(grad_weights.data(), tokens, k)},
                         {}, place);
    mb::permute_backward(
        {.grad_permuted = matrix(grad_permuted, rows), .row_of_slot = rows_of, .grad_hidden = matrix(grad_states, tokens)},
        {}, place);
  }

  [[nodiscard]] auto results() const {
    return std::tuple(ids.values(), weights.values(), saved.values(), offsets.values(), row_of_slot.values(),
                      slot_of_row.values(), permuted.values(), combined.values(), grad_permuted.values(),
                      grad_weights.values(), grad_states.values());
  }
};

}  // namespace

TEST_CASE(
    "contract 12 and 13: a layer's dispatch is captured in one CUDA graph and replays with the same bits, for any tokens "
    "and count") {
  GraphLayer captured_layer(500, 40, 72);
  GraphLayer direct(500, 40, 72);
  const auto before = captured_layer.results();
  const auto graph = captured(captured_layer.engine, [&] { captured_layer.enqueue(); });
  CHECK(captured_layer.results() == before);  // captured, not run
  for (const std::int64_t active : {500, 499, 0, 123, 500}) {
    CAPTURE(active);
    const auto seed = static_cast<std::uint64_t>(active + 1);
    captured_layer.fill(seed, active);
    direct.fill(seed, active);
    replay(captured_layer.engine, graph);
    direct.enqueue();
    CHECK(captured_layer.results() == direct.results());
  }
}

namespace {

/// Kernels of a permutation alone, or with routing.
int kernels_of_permutation(GraphLayer& layer, bool routes = false) {
  const mb::Shape shape{layer.tokens, layer.experts};
  const mb::Workspace workspace{layer.scratch.data(), mb::route_and_permute_workspace_bytes(layer.router, shape)};
  const mb::PermutationArgs order{.experts = mb::MatrixView<std::int32_t>(layer.ids.data(), layer.tokens, GraphLayer::k),
                                  .offsets = {layer.offsets.data(), layer.experts + 1},
                                  .row_of_slot = {layer.row_of_slot.data(), layer.tokens, GraphLayer::k},
                                  .slot_of_row = {layer.slot_of_row.data(), layer.rows},
                                  .align = GraphLayer::align};
  const mb::RouteArgs routing{.logits = mb::MatrixView<float>(layer.logits.data(), layer.tokens, layer.experts),
                              .experts = {layer.ids.data(), layer.tokens, GraphLayer::k},
                              .weights = mb::MatrixView<float>(layer.weights.data(), layer.tokens, GraphLayer::k)};
  return kernels_of(graph_of(layer.engine, [&] {
    if (routes)
      mb::route_and_permute(layer.router, routing, order, workspace, layer.engine.place());
    else
      mb::permutation(order, workspace, layer.engine.place());
  }));
}

}  // namespace

TEST_CASE("contract 12: a fused call is two kernels, a permutation two, or one of few slots") {
  GraphLayer few(2047 / GraphLayer::k, 40, 8);
  CHECK(kernels_of_permutation(few) == 1);
  GraphLayer many((2048 + GraphLayer::k - 1) / GraphLayer::k, 40, 8);
  CHECK(kernels_of_permutation(many) == 2);
  CHECK(kernels_of_permutation(few, true) == 2);
  CHECK(kernels_of_permutation(many, true) == 2);
  // permute, combine, its backward with weights, permute's backward
  CHECK(kernels_of(graph_of(few.engine, [&] { few.enqueue(); })) == 2 + 4);
}

TEST_CASE("contract 12: a permutation by sorting is captured, too") {
  const CudaEngine engine;
  const DispatchProblem p = dispatch_problem(61, 900, 3, 9000, 1, 4);
  const std::size_t bytes = mb::permutation_workspace_bytes(p.tokens, p.k, p.experts);
  const auto longs = [&](std::int64_t n) {
    return CudaEngine::Array<std::int64_t>(engine, std::vector<std::int64_t>(static_cast<std::size_t>(n), 77));
  };
  CudaEngine::Array<std::int32_t> ids(engine, p.ids);
  auto offsets = longs(p.experts + 1);
  auto row_of_slot = longs(p.slots());
  auto slot_of_row = longs(p.rows());
  auto scratch = longs(static_cast<std::int64_t>(bytes / 8 + 2));
  const auto graph = captured(engine, [&] {
    mb::permutation({.experts = mb::MatrixView<std::int32_t>(ids.data(), p.tokens, p.k),
                     .offsets = {offsets.data(), p.experts + 1},
                     .row_of_slot = {row_of_slot.data(), p.tokens, p.k},
                     .slot_of_row = {slot_of_row.data(), p.rows()},
                     .align = p.align},
                    {scratch.data(), bytes}, engine.place());
  });
  CHECK(offsets.values()[0] == 77);  // captured, not run
  replay(engine, graph);
  const DispatchResults host = run_dispatch(HostEngine{}, p);
  CHECK(offsets.values() == host.offsets);
  CHECK(row_of_slot.values() == host.row_of_slot);
  CHECK(slot_of_row.values() == host.slot_of_row);
}

}  // namespace testing
