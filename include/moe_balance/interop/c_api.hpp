// Defines the functions of c_api.h. Include it in exactly one C++ file of a program or shared object, compiled with exceptions.
#pragma once

#if !defined(__cpp_exceptions)
#error "moe_balance: interop/c_api.hpp turns exceptions into results: compile this file with exceptions"
#endif

#include <moe_balance/interop/c_api.h>
#include <moe_balance/engine/host.hpp>
#include <moe_balance/interop/c_api_saved.hpp>
#include <moe_balance/presets.hpp>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>

/// A router of any type.
struct moeb_router {
  virtual ~moeb_router() = default;
  [[nodiscard]] virtual int k() const = 0;
  [[nodiscard]] virtual bool has_bias() const = 0;
  [[nodiscard]] virtual bool has_load() const = 0;
  [[nodiscard]] virtual bool has_loss() const = 0;
  [[nodiscard]] virtual std::size_t saved_bytes(const moe_balance::Shape& shape) const = 0;
  virtual void route(const moeb_forward_args& args) const = 0;
  virtual void forward(const moeb_forward_args& args) const = 0;
  virtual void backward(const moeb_backward_args& args) const = 0;
  virtual void loss(const moe_balance::LossArgs& args) const = 0;
  virtual void update(moe_balance::BiasRef bias, moe_balance::LoadRef load) const = 0;
  moe_balance::Executor executor;
};

MOEB_NAMESPACE_BEGIN

namespace c_api {

inline thread_local std::string last_error;

/// Runs `call`; whatever it throws becomes a result and a message, because no exception may cross into C.
template <class Call>
[[nodiscard]] int guarded(const Call& call) noexcept {
  try {
    call();
    return moeb_ok;
  } catch (const InvalidArgument& error) {
    last_error = error.what();
    return moeb_invalid_argument;
  } catch (const std::exception& error) {
    last_error = error.what();
    return moeb_failed;
  } catch (...) {
    last_error = "moe_balance: an exception of unknown type";
    return moeb_failed;
  }
}

inline void expect_pointer(const char* call, const char* argument, const void* pointer) {
  MOEB_EXPECTS(pointer != nullptr, call, argument, "null", "a pointer");
}

template <class Args>
void expect_args(const char* call, const Args* args) {
  expect_pointer(call, "args", args);
  MOEB_EXPECTS(args->size == sizeof(Args), call, "args.size", std::to_string(args->size), std::to_string(sizeof(Args)));
}

template <class Matrix>
[[nodiscard]] Matrix matrix_of(const char* call, const char* argument, const moeb_matrix& matrix) {
  MOEB_EXPECTS(matrix.type >= moeb_float32 && matrix.type <= moeb_float64, call, (std::string(argument) + ".type").c_str(),
               std::to_string(matrix.type), "0 (float32), 1 (bfloat16), 2 (float16), 3 (float64)");
  const bool has_rows = matrix.rows != 0;  // without any NumPy says that they are 0 bytes apart
  return {matrix.data, static_cast<DataType>(matrix.type), matrix.rows, matrix.columns,
          has_rows ? matrix.stride : matrix.columns};
}

[[nodiscard]] inline Sequences sequences_of(std::int64_t count) {
  return Sequences{.count = count == 0 ? 1 : count};
}
template <class Args>
[[nodiscard]] Sequences sequences_of(const char* call, const Args& args) {
  Sequences sequences = sequences_of(args.sequences);
  if (args.token_major != 0) sequences.layout = Sequences::Layout::token_major;
  if (args.sequence_offsets == nullptr) return sequences;
  MOEB_EXPECTS(args.token_major == 0, call, "token_major", args.token_major,
               "0, where sequence_offsets say which tokens belong together");
  sequences.layout = Sequences::Layout::offsets;
  sequences.offsets = args.sequence_offsets;
  return sequences;
}

[[nodiscard]] inline BiasRef bias_of(float* bias, std::int64_t experts) {
  return bias == nullptr ? BiasRef{} : BiasRef{bias, static_cast<int>(experts)};
}

template <class PresetT>
class AnyRouter final : public moeb_router {
  static_assert(PresetT::Traits::bias_memory == 0, "moeb_update takes biases only, not what their rule keeps");
  static_assert(!PresetT::Traits::reads_margins,
                "moeb_forward and moeb_update take counts only, not the margins that the rule reads");

 public:
  [[nodiscard]] int k() const override { return PresetT::k; }
  [[nodiscard]] bool has_bias() const override { return PresetT::Traits::biases > 0; }
  [[nodiscard]] bool has_load() const override { return has_bias() || PresetT::Traits::reads_global_batch; }
  [[nodiscard]] bool has_loss() const override { return PresetT::loss_count > 0; }
  [[nodiscard]] std::size_t saved_bytes(const Shape& shape) const override { return with_head(router_.saved_bytes(shape)); }

  void route(const moeb_forward_args& args) const override {
    RouteArgs route;
    fill(route, "route", args);
    router_.route(route, {}, host(args.threads));
  }
  void forward(const moeb_forward_args& args) const override {
    ForwardArgs forward;
    fill(forward, "forward", args);
    if (args.load != nullptr) forward.load = LoadRef{args.load, static_cast<int>(args.logits.columns)};
    forward.sequences = sequences_of("forward", args);
    forward.accumulate = args.accumulate != 0;
    SavedHead* head = nullptr;
    if (has_head(args.logits, forward.sequences)) {
      forward.saved =
          SavedOfCall{"forward", args.saved, args.saved_bytes}.behind_head(bytes_for(args.logits, forward.sequences));
      head = static_cast<SavedHead*>(args.saved);
      check_apart(*head, forward);
    }
    try {
      router_.forward(forward, {}, host(args.threads));
    } catch (const InvalidArgument&) {
      throw;  // before anything was written
    } catch (...) {
      if (head != nullptr) head->mark = 0;
      throw;
    }
    if (head != nullptr) {
      *head = {SavedHead::written, args.logits.rows, args.logits.columns, sequences_read(forward.sequences)};
    }
  }
  void backward(const moeb_backward_args& args) const override {
    BackwardArgs backward;
    backward.logits = matrix_of<ConstAnyMatrix>("backward", "logits", args.logits);
    backward.experts = {args.experts, args.logits.rows, PresetT::k};
    backward.grad_weights = matrix_of<ConstAnyMatrix>("backward", "grad_weights", args.grad_weights);
    backward.grad_logits = matrix_of<AnyMatrix>("backward", "grad_logits", args.grad_logits);
    backward.active = args.active;
    backward.sequences = sequences_of("backward", args);
    if (has_head(args.logits, backward.sequences)) {
      const SavedOfCall saved{"backward", args.saved, args.saved_bytes};
      const SavedHead* const head = saved.written("logits.columns", args.logits.columns, sequences_read(backward.sequences));
      backward.saved = saved.behind_head(bytes_for(args.logits, backward.sequences));
      const Validator check{"backward"};
      check.range("logits.rows", args.logits.rows, head->tokens, head->tokens, "the tokens that saved is of");
      check.matrix("grad_logits", backward.grad_logits, args.logits.rows, args.logits.columns);
      check.apart({bytes_of("grad_logits", backward.grad_logits)}, {bytes_of(*head)});
    }
    backward.loss_scale = args.loss_scale;
    router_.backward(backward, {}, host(args.threads));
  }
  void loss([[maybe_unused]] const LossArgs& args) const override {
    if constexpr (PresetT::loss_count > 0) {
      LossArgs own = args;
      const moeb_matrix shape{.data = nullptr, .type = 0, .rows = 0, .columns = args.experts, .stride = args.experts};
      if (has_head(shape, args.sequences)) {
        const SavedOfCall saved{"loss", args.saved.data, args.saved.bytes};
        const SavedHead* const head = saved.written("experts", args.experts, sequences_read(args.sequences));
        own.saved = saved.behind_head(bytes_for(shape, args.sequences));
        Validator{"loss"}.apart({ByteRows("value", args.value, sizeof(float))}, {bytes_of(*head)});
      }
      router_.loss(own, {}, Host{});
    } else
      fail_argument("loss", "router", "a preset without a loss", {"one for which moeb_has_loss is not 0"});
  }
  void update(BiasRef bias, LoadRef load) const override { router_.update(bias, load, {}, Host{}); }

 private:
  /// The sequences that the balancer reads.
  [[nodiscard]] static std::int64_t sequences_read(const Sequences& sequences) {
    return PresetT::Traits::reads_sequences ? sequences.count : 1;
  }
  /// Whether `saved` has a head: not where there is no loss, nor in calls whose shape the router refuses.
  [[nodiscard]] static bool has_head(const moeb_matrix& logits, const Sequences& sequences) {
    const std::int64_t count = sequences_read(sequences);
    return PresetT::loss_count > 0 && logits.rows >= 0 && logits.columns >= 1 && logits.columns <= max_experts &&
           count >= 1 && count <= std::numeric_limits<std::int32_t>::max();
  }
  [[nodiscard]] std::size_t bytes_for(const moeb_matrix& logits, const Sequences& sequences) const {
    return saved_bytes({logits.rows, static_cast<int>(logits.columns), sequences.count});
  }
  [[nodiscard]] Host host(int threads) const { return {.threads = threads, .executor = executor}; }

  template <class Args>
  static void fill(Args& to, const char* call, const moeb_forward_args& args) {
    to.logits = matrix_of<ConstAnyMatrix>(call, "logits", args.logits);
    to.experts = {args.experts, args.logits.rows, PresetT::k};
    to.weights = matrix_of<AnyMatrix>(call, "weights", args.weights);
    to.counts = args.counts;
    to.bias = bias_of(args.bias, args.logits.columns);
    to.active = args.active;
    to.status = reinterpret_cast<Status*>(args.status);
  }

  PresetT router_{};
};
static_assert(sizeof(moeb_status) == sizeof(Status) && alignof(moeb_status) == alignof(Status));
static_assert(offsetof(moeb_status, dropped_slots) == offsetof(Status, dropped_slots));
static_assert(static_cast<int>(DataType::float32) == moeb_float32 && static_cast<int>(DataType::bfloat16) == moeb_bfloat16 &&
              static_cast<int>(DataType::float16) == moeb_float16 && static_cast<int>(DataType::float64) == moeb_float64);

[[nodiscard]] inline std::unique_ptr<moeb_router> router_named(const std::string& preset) {
  if (preset == "deepseek_v3") return std::make_unique<AnyRouter<presets::DeepSeekV3<>>>();
  if (preset == "deepseek_v2") return std::make_unique<AnyRouter<presets::DeepSeekV2<>>>();
  if (preset == "deepseek_v4") return std::make_unique<AnyRouter<presets::DeepSeekV4<>>>();
  if (preset == "minimax_m2") return std::make_unique<AnyRouter<presets::MiniMaxM2<>>>();
  if (preset == "kimi_k2") return std::make_unique<AnyRouter<presets::KimiK2<>>>();
  if (preset == "glm_4_5") return std::make_unique<AnyRouter<presets::Glm45<>>>();
  if (preset == "longcat_flash") return std::make_unique<AnyRouter<presets::LongCatFlash<>>>();
  if (preset == "mixtral") return std::make_unique<AnyRouter<presets::Mixtral<>>>();
  if (preset == "qwen3") return std::make_unique<AnyRouter<presets::Qwen3<>>>();
  if (preset == "gpt_oss") return std::make_unique<AnyRouter<presets::GptOss<>>>();
  if (preset == "olmoe") return std::make_unique<AnyRouter<presets::Olmoe<>>>();
  if (preset == "switch") return std::make_unique<AnyRouter<presets::Switch<>>>();
  if (preset == "llama4") return std::make_unique<AnyRouter<presets::Llama4<>>>();
  fail_argument(
      "moeb_router_create", "preset", "\"" + preset + "\"",
      {"deepseek_v3, deepseek_v2, deepseek_v4, kimi_k2, glm_4_5, minimax_m2, longcat_flash, mixtral, qwen3, gpt_oss, olmoe, "
       "switch, llama4"});
}

}  // namespace c_api

MOEB_NAMESPACE_END

#define MOEB_TEXT_(x) #x
#define MOEB_TEXT(x) MOEB_TEXT_(x)

extern "C" {

const char* moeb_version() {
  return MOEB_TEXT(MOEB_VERSION_MAJOR) "." MOEB_TEXT(MOEB_VERSION_MINOR) "." MOEB_TEXT(MOEB_VERSION_PATCH);
}

const char* moeb_last_error() {
  return moe_balance::c_api::last_error.c_str();
}

int moeb_router_create(const char* preset, moeb_router** router) {
  return moe_balance::c_api::guarded([&] {
    moe_balance::c_api::expect_pointer("moeb_router_create", "preset", preset);
    moe_balance::c_api::expect_pointer("moeb_router_create", "router", router);
    *router = moe_balance::c_api::router_named(preset).release();
  });
}

void moeb_router_destroy(moeb_router* router) {
  delete router;
}

int moeb_set_executor(moeb_router* router, moeb_executor run, void* context) {
  return moe_balance::c_api::guarded([&] {
    moe_balance::c_api::expect_pointer("moeb_set_executor", "router", router);
    router->executor = {.run = run, .context = context};
  });
}

int32_t moeb_top_k(const moeb_router* router) {
  return router == nullptr ? 0 : router->k();
}

int32_t moeb_has_bias(const moeb_router* router) {
  return router != nullptr && router->has_bias() ? 1 : 0;
}

int32_t moeb_has_load(const moeb_router* router) {
  return router != nullptr && router->has_load() ? 1 : 0;
}

int32_t moeb_has_loss(const moeb_router* router) {
  return router != nullptr && router->has_loss() ? 1 : 0;
}

size_t moeb_saved_bytes(const moeb_router* router, int64_t tokens, int32_t experts, int64_t sequences) {
  if (router == nullptr || tokens < 0 || experts < 0 || sequences < 0) return 0;
  return router->saved_bytes({tokens, experts, sequences == 0 ? 1 : sequences});
}

int moeb_route(const moeb_router* router, const moeb_forward_args* args) {
  return moe_balance::c_api::guarded([&] {
    moe_balance::c_api::expect_pointer("route", "router", router);
    moe_balance::c_api::expect_args("route", args);
    router->route(*args);
  });
}

int moeb_forward(const moeb_router* router, const moeb_forward_args* args) {
  return moe_balance::c_api::guarded([&] {
    moe_balance::c_api::expect_pointer("forward", "router", router);
    moe_balance::c_api::expect_args("forward", args);
    router->forward(*args);
  });
}

int moeb_backward(const moeb_router* router, const moeb_backward_args* args) {
  return moe_balance::c_api::guarded([&] {
    moe_balance::c_api::expect_pointer("backward", "router", router);
    moe_balance::c_api::expect_args("backward", args);
    router->backward(*args);
  });
}

int moeb_loss(const moeb_router* router, const void* saved, size_t saved_bytes, int32_t experts, int64_t sequences,
              float* value) {
  return moe_balance::c_api::guarded([&] {
    moe_balance::c_api::expect_pointer("loss", "router", router);
    moe_balance::LossArgs args;
    args.saved = {const_cast<void*>(saved), saved_bytes};  // one device: nothing awaits a sum in it
    args.experts = experts;
    args.sequences = moe_balance::c_api::sequences_of(sequences);
    args.value = value;
    router->loss(args);
  });
}

int moeb_update(const moeb_router* router, float* bias, int64_t* load, int32_t experts, int64_t layers) {
  return moe_balance::c_api::guarded([&] {
    moe_balance::c_api::expect_pointer("update", "router", router);
    if (load == nullptr && !router->has_load()) return;
    router->update({bias, experts, layers}, {load, experts, layers});
  });
}

}  // extern "C"

#undef MOEB_TEXT
#undef MOEB_TEXT_
