/** \file c_api.h \brief A plain C interface to the routers of published models (presets.hpp), on the CPU. C11, C++ and anything with a foreign-function interface.
 *
 * One C++ file of the program or shared object includes c_api.hpp, which defines these functions; all others include this header only.
 *
 * T = tokens, E = experts, K = experts chosen per token. All memory is the caller's; calls return when their work is done. A router is immutable: any
 * number of threads may use one, with outputs of their own. Functions that return int return moeb_ok or an error, whose message
 * moeb_last_error() has. After moeb_invalid_argument nothing has been written; after another error, of which a pool that throws is one, outputs and the
 * load may have been, in part. Optional pointers may be NULL. */
#ifndef MOE_BALANCE_INTEROP_C_API_H
#define MOE_BALANCE_INTEROP_C_API_H

#include <stddef.h>
#include <stdint.h>

/** Before every function: exported, unless a program that links the definitions in says otherwise. */
#if !defined(MOEB_C_API)
#define MOEB_C_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** Results of calls. */
enum { moeb_ok = 0, moeb_invalid_argument = 1, moeb_failed = 2 };

/** Element types of logits, weights and their gradients. */
enum { moeb_float32 = 0, moeb_bfloat16 = 1, moeb_float16 = 2, moeb_float64 = 3 };

/** A row-major matrix; `stride` counts elements from row to row. */
typedef struct moeb_matrix {
  void* data;      /**< element (0, 0) */
  int32_t type;    /**< moeb_float32, ... */
  int64_t rows;    /**< 0 or more */
  int64_t columns; /**< 0 or more */
  int64_t stride;  /**< at least columns */
} moeb_matrix;

/** Counters that calls add to and never clear. */
typedef struct moeb_status {
  int64_t non_finite_tokens; /**< tokens with a non-finite logit among their chosen experts: weights 0, gradient 0 */
  int64_t invalid_experts;   /**< 0: the presets replay nothing */
  int64_t invalid_rows;      /**< 0: the presets dispatch nothing */
  int64_t dropped_slots;     /**< 0: the presets have no capacity */
} moeb_status;

/** Arguments of moeb_route and moeb_forward. `size` is sizeof(moeb_forward_args), so that a later version may add to the end. */
typedef struct moeb_forward_args {
  size_t size;           /**< sizeof(moeb_forward_args) */
  moeb_matrix logits;    /**< [T, E] */
  int32_t* experts;      /**< [T, K] out, contiguous: ids, best first; -1: none */
  moeb_matrix weights;   /**< [T, K] out: float32 or the logits' type */
  int64_t* counts;       /**< [E] out, optional */
  float* bias;           /**< [E]; required by moeb_forward where moeb_has_bias, optional otherwise */
  int64_t* load;         /**< [E]; added to; required by moeb_forward where moeb_has_load. moeb_route ignores it */
  void* saved;           /**< moeb_saved_bytes bytes, 8-byte aligned; later calls know whose it is. moeb_route ignores it */
  size_t saved_bytes;    /**< its size */
  const uint8_t* active; /**< [T], optional: 0 marks a padding token */
  int64_t sequences;     /**< equal sequences, one behind the other, for a sequence loss; 0 and 1: one */
  moeb_status* status;   /**< optional */
  int32_t accumulate;    /**< not 0: add this call's counts to load; 0 in evaluation and recomputation */
  int32_t threads;       /**< 0: all cores that the calling thread may run on */
  int64_t token_major;   /**< not 0: token t belongs to sequence t % sequences */
  /** [sequences + 1], optional: sequence s holds tokens offsets[s] to offsets[s + 1] - 1 */
  const int64_t* sequence_offsets;
} moeb_forward_args;

/** Arguments of moeb_backward. */
typedef struct moeb_backward_args {
  size_t size;                     /**< sizeof(moeb_backward_args) */
  moeb_matrix logits;              /**< [T, E], as given to moeb_forward */
  const int32_t* experts;          /**< [T, K], as moeb_forward wrote them */
  moeb_matrix grad_weights;        /**< [T, K]; data NULL: zeros */
  moeb_matrix grad_logits;         /**< [T, E] out: float32 or the logits' type */
  void* saved;                     /**< as moeb_forward filled it */
  size_t saved_bytes;              /**< its size */
  const uint8_t* active;           /**< as given to moeb_forward */
  int64_t sequences;               /**< as given to moeb_forward */
  float loss_scale;                /**< multiplies the balancing loss's gradient; 1 for the plain loss */
  int32_t threads;                 /**< 0: all cores that the calling thread may run on */
  int64_t token_major;             /**< as given to moeb_forward */
  const int64_t* sequence_offsets; /**< as given to moeb_forward */
} moeb_backward_args;

/** A router; moeb_router_create makes one. */
typedef struct moeb_router moeb_router;

/** "0.1.0": the version of the library that defines these functions. */
MOEB_C_API const char* moeb_version(void);

/** The message of this thread's latest error; "" before any. Valid until the thread's next call. */
MOEB_C_API const char* moeb_last_error(void);

/** The router of a model: "deepseek_v3", "deepseek_v2", "deepseek_v4", "kimi_k2", "glm_4_5", "minimax_m2", "longcat_flash", "mixtral", "qwen3", "gpt_oss",
 *  "olmoe", "switch" or "llama4", as published: of "longcat_flash"'s experts the last 256 compute nothing. The caller destroys it. */
MOEB_C_API int moeb_router_create(const char* preset, moeb_router** router);
/** NULL is allowed. */
MOEB_C_API void moeb_router_destroy(moeb_router* router);

/** Runs part `index` of the work. */
typedef void (*moeb_part)(const void* work, int index);
/** Calls part(work, i) once for every i from 0 to parts - 1, on any threads, in any order, at worst one after the other on the calling thread, and returns
 *  when all have returned. Parts do not wait for each other. */
typedef void (*moeb_executor)(void* context, int parts, moeb_part part, const void* work);
/** From now on the parts of this router's calls run on threads of the program's own, by run(context, ...); `run` NULL: on threads that each call
 *  starts, as at first. `context` is as long-lived as the calls, whose `threads` says how many threads there are. Not while another thread uses the router. */
MOEB_C_API int moeb_set_executor(moeb_router* router, moeb_executor run, void* context);

/** K; 0 for NULL. */
MOEB_C_API int32_t moeb_top_k(const moeb_router* router);
/** Whether it has a bias, which moeb_update moves. */
MOEB_C_API int32_t moeb_has_bias(const moeb_router* router);
/** Whether moeb_forward needs a load. */
MOEB_C_API int32_t moeb_has_load(const moeb_router* router);
/** Whether it has a balancing loss, so that moeb_forward needs `saved`. */
MOEB_C_API int32_t moeb_has_loss(const moeb_router* router);
/** Bytes of `saved` for one moeb_forward; 0 where there is no loss, for NULL and for a negative size;
 *  SIZE_MAX for more sequences than a call takes. */
MOEB_C_API size_t moeb_saved_bytes(const moeb_router* router, int64_t tokens, int32_t experts, int64_t sequences);

/** Inference: ids [T, K], weights [T, K] and optionally counts [E]. Needs no state. */
MOEB_C_API int moeb_route(const moeb_router* router, const moeb_forward_args* args);
/** Training: the same; reads the bias, adds to the load, and fills `saved` for moeb_backward and moeb_loss. */
MOEB_C_API int moeb_forward(const moeb_router* router, const moeb_forward_args* args);
/** Writes grad_logits [T, E]: the gradient through the weights, plus loss_scale times that of the balancing loss. */
MOEB_C_API int moeb_backward(const moeb_router* router, const moeb_backward_args* args);
/** The value [1] of the balancing loss of one moeb_forward; moeb_invalid_argument for a router without a loss. */
MOEB_C_API int moeb_loss(const moeb_router* router, const void* saved, size_t saved_bytes, int32_t experts,
                         int64_t sequences, float* value);
/** Once per optimizer step: moves the bias [layers, E] of every layer and clears the load [layers, E]. `bias` may be NULL where !moeb_has_bias,
 *  `load` where !moeb_has_load. */
MOEB_C_API int moeb_update(const moeb_router* router, float* bias, int64_t* load, int32_t experts, int64_t layers);

#ifdef __cplusplus
}
#endif

#endif
