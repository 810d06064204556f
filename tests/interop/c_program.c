/* The C interface from a C11 program: a step of training, and errors. Prints what failed; exit status 0 when nothing did. */
#include <moe_balance/interop/c_api.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

#define CHECK(condition)                                     \
  do {                                                       \
    if (!(condition)) {                                      \
      printf("line %d: not so: %s\n", __LINE__, #condition); \
      ++failures;                                            \
    }                                                        \
  } while (0)

enum { tokens = 5, experts = 16, k = 8 };

static moeb_matrix matrix_of(float* data, int64_t columns) {
  return (moeb_matrix){.data = data, .type = moeb_float32, .rows = tokens, .columns = columns, .stride = columns};
}

static void one_step_of_training(void) {
  moeb_router* router = NULL;
  CHECK(moeb_router_create("deepseek_v3", &router) == moeb_ok);
  CHECK(moeb_top_k(router) == k && moeb_has_bias(router) && moeb_has_load(router) && moeb_has_loss(router));
  float logits[tokens * experts], weights[tokens * k], grad_weights[tokens * k], grad_logits[tokens * experts],
      bias[experts] = {0};
  int32_t ids[tokens * k];
  int64_t counts[experts], load[experts] = {0};
  for (int i = 0; i < tokens * experts; ++i) logits[i] = (float)((i * 7919) % 101) / 50.0f - 1.0f;
  for (int i = 0; i < tokens * k; ++i) grad_weights[i] = (float)(i % 3) - 1.0f;
  const size_t saved_bytes = moeb_saved_bytes(router, tokens, experts, 1);
  CHECK(saved_bytes > 0);
  void* saved = malloc(saved_bytes);
  moeb_status status = {0, 0, 0, 0};
  const moeb_forward_args forward = {.size = sizeof forward,
                                     .logits = matrix_of(logits, experts),
                                     .experts = ids,
                                     .weights = matrix_of(weights, k),
                                     .counts = counts,
                                     .bias = bias,
                                     .load = load,
                                     .saved = saved,
                                     .saved_bytes = saved_bytes,
                                     .status = &status,
                                     .accumulate = 1,
                                     .threads = 1};
  CHECK(moeb_forward(router, &forward) == moeb_ok);
  int64_t all = 0;
  for (int e = 0; e < experts; ++e) {
    CHECK(counts[e] == load[e]);
    all += counts[e];
  }
  CHECK(all == tokens * k);
  for (int t = 0; t < tokens; ++t) {
    float sum = 0;
    for (int slot = 0; slot < k; ++slot) sum += weights[t * k + slot];
    CHECK(fabsf(sum - 2.5f) < 1e-5f);
  }
  const moeb_backward_args backward = {.size = sizeof backward,
                                       .logits = matrix_of(logits, experts),
                                       .experts = ids,
                                       .grad_weights = matrix_of(grad_weights, k),
                                       .grad_logits = matrix_of(grad_logits, experts),
                                       .saved = saved,
                                       .saved_bytes = saved_bytes,
                                       .loss_scale = 1.0f,
                                       .threads = 1};
  CHECK(moeb_backward(router, &backward) == moeb_ok);
  float size = 0;
  for (int i = 0; i < tokens * experts; ++i) size += fabsf(grad_logits[i]);
  CHECK(isfinite(size) && size > 0);
  float loss = -1;
  CHECK(moeb_loss(router, saved, saved_bytes, experts, 1, &loss) == moeb_ok);
  CHECK(loss > 0.5e-4f && loss < 2e-4f); /* 1e-4 where balanced */

  /* Inference sees the bias and changes no state. */
  bias[3] = 100;
  CHECK(moeb_route(router, &forward) == moeb_ok);
  for (int t = 0; t < tokens; ++t) CHECK(ids[t * k] == 3);
  CHECK(load[3] <= tokens);
  bias[3] = 0;

  int64_t before[experts];
  memcpy(before, load, sizeof load);
  CHECK(moeb_update(router, bias, load, experts, 1) == moeb_ok);
  for (int e = 0; e < experts; ++e) {
    const int64_t excess = before[e] * experts - tokens * k;
    CHECK(bias[e] == (excess < 0 ? 1e-3f : excess > 0 ? -1e-3f : 0.0f));
    CHECK(load[e] == 0);
  }

  /* Errors: a result and a message, and nothing written. */
  moeb_forward_args wrong = forward;
  wrong.experts = NULL;
  weights[0] = -7;
  CHECK(moeb_route(router, &wrong) == moeb_invalid_argument);
  CHECK(strcmp(moeb_last_error(), "moe_balance: route: experts.data is null; allowed: a pointer to the caller's memory") ==
        0);
  CHECK(weights[0] == -7);
  wrong = forward;
  wrong.size = 8;
  CHECK(moeb_route(router, &wrong) == moeb_invalid_argument && strstr(moeb_last_error(), "args.size is 8") != NULL);
  wrong = forward;
  wrong.logits.type = 9;
  CHECK(moeb_route(router, &wrong) == moeb_invalid_argument && strstr(moeb_last_error(), "logits.type is 9") != NULL);
  wrong = forward;
  wrong.saved_bytes = saved_bytes - 8;
  char message[80];
  snprintf(message, sizeof message, "forward: saved.bytes is %zu; allowed: %zu to ", saved_bytes - 8, saved_bytes);
  CHECK(moeb_forward(router, &wrong) == moeb_invalid_argument && strstr(moeb_last_error(), message) != NULL);
  wrong = forward; /* the head of saved is memory of its own, too */
  wrong.counts = (int64_t*)saved - experts + 4;
  CHECK(moeb_forward(router, &wrong) == moeb_invalid_argument);
  CHECK(strstr(moeb_last_error(), "forward: saved is memory that counts shares; allowed: memory of its own") != NULL);
  CHECK(moeb_loss(router, saved, saved_bytes, experts, 1, (float*)saved + 7) == moeb_invalid_argument);
  CHECK(strstr(moeb_last_error(), "loss: value is memory that saved shares") != NULL);
  wrong = forward;
  const int64_t offsets[] = {0, tokens - 1};
  wrong.sequence_offsets = offsets;
  CHECK(moeb_forward(router, &wrong) == moeb_invalid_argument && strstr(moeb_last_error(), "forward: sequences.offsets[1] is ") != NULL);
  wrong.token_major = 1;
  CHECK(moeb_forward(router, &wrong) == moeb_invalid_argument && strstr(moeb_last_error(), "forward: token_major is 1; allowed: 0") != NULL);
  wrong = forward; /* no tokens, as NumPy describes them */
  wrong.logits.rows = wrong.weights.rows = wrong.logits.stride = wrong.weights.stride = 0;
  CHECK(moeb_route(router, &wrong) == moeb_ok);

  /* What forward has saved is of its own call. */
  grad_logits[0] = -7;
  moeb_backward_args other = backward;
  other.sequences = 2;
  CHECK(moeb_backward(router, &other) == moeb_invalid_argument);
  CHECK(strcmp(moeb_last_error(), "moe_balance: backward: sequences is 2; allowed: 1 (those that saved is of)") == 0);
  CHECK(moeb_loss(router, saved, saved_bytes, experts, 2, &loss) == moeb_invalid_argument);
  CHECK(moeb_loss(router, saved, saved_bytes, experts - 1, 1, &loss) == moeb_invalid_argument);
  other = backward;
  other.logits.rows = other.grad_logits.rows = other.grad_weights.rows = tokens - 1;
  CHECK(moeb_backward(router, &other) == moeb_invalid_argument && strstr(moeb_last_error(), "the tokens that saved is of") != NULL);
  other = backward;
  other.saved = calloc(1, saved_bytes);
  CHECK(moeb_backward(router, &other) == moeb_invalid_argument);
  CHECK(strstr(moeb_last_error(), "backward: saved is not written; allowed: what moeb_forward has filled") != NULL);
  CHECK(moeb_loss(router, other.saved, saved_bytes, experts, 1, &loss) == moeb_invalid_argument);
  free(other.saved);
  other = backward;
  other.grad_logits.data = (float*)saved + 8 - tokens * experts;
  CHECK(moeb_backward(router, &other) == moeb_invalid_argument);
  CHECK(strstr(moeb_last_error(), "backward: grad_logits is memory that saved shares") != NULL);
  CHECK(grad_logits[0] == -7);
  CHECK(moeb_backward(router, &backward) == moeb_ok);
  CHECK(moeb_route(router, NULL) == moeb_invalid_argument);
  CHECK(moeb_route(NULL, &forward) == moeb_invalid_argument);
  CHECK(moeb_forward(NULL, &forward) == moeb_invalid_argument);
  CHECK(moeb_backward(NULL, &backward) == moeb_invalid_argument);
  CHECK(moeb_loss(NULL, saved, saved_bytes, experts, 1, &loss) == moeb_invalid_argument);
  CHECK(moeb_update(NULL, bias, load, experts, 1) == moeb_invalid_argument);
  free(saved);
  moeb_router_destroy(router);
}

static void presets(void) {
  const char* const names[] = {"deepseek_v3", "deepseek_v2", "mixtral", "qwen3", "gpt_oss", "olmoe", "switch", "llama4", "kimi_k2", "glm_4_5", "deepseek_v4", "minimax_m2"};
  const int32_t top_k[] = {8, 6, 2, 8, 4, 8, 1, 1, 8, 8, 6, 8};
  const int32_t has_loss[] = {1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0};
  for (int i = 0; i < 12; ++i) {
    moeb_router* router = NULL;
    CHECK(moeb_router_create(names[i], &router) == moeb_ok);
    CHECK(moeb_top_k(router) == top_k[i]);
    CHECK(moeb_has_loss(router) == has_loss[i]);
    CHECK(moeb_has_bias(router) == (i == 0 || i >= 8));
    CHECK(moeb_has_load(router) == (i == 0 || i == 3 || i >= 8));
    float value = 0;
    if (!has_loss[i]) CHECK(moeb_loss(router, NULL, 0, experts, 1, &value) == moeb_invalid_argument);
    moeb_router_destroy(router);
  }
  moeb_router* router = NULL;
  CHECK(moeb_router_create("deepseek_v9", &router) == moeb_invalid_argument && router == NULL);
  CHECK(strstr(moeb_last_error(), "preset is \"deepseek_v9\"; allowed: deepseek_v3, ") != NULL);
  CHECK(moeb_router_create(NULL, &router) == moeb_invalid_argument);
  CHECK(moeb_router_create("mixtral", NULL) == moeb_invalid_argument);
  moeb_router_destroy(NULL);
  CHECK(moeb_top_k(NULL) == 0 && moeb_saved_bytes(NULL, 1, 1, 1) == 0);
  moeb_router* mixtral = NULL;
  CHECK(moeb_router_create("mixtral", &mixtral) == moeb_ok);
  CHECK(moeb_saved_bytes(mixtral, 4, 8, 1) > 0 && moeb_saved_bytes(mixtral, 4, -8, 1) == 0);
  CHECK(moeb_saved_bytes(mixtral, -1, 8, 1) == 0 && moeb_saved_bytes(mixtral, 4, 8, -1) == 0);
  CHECK(moeb_saved_bytes(mixtral, 4, 4096, 1) > 0);  /* for which calls are refused: asking is not */
  CHECK(!moeb_has_load(mixtral) && moeb_update(mixtral, NULL, NULL, 8, 1) == moeb_ok);
  moeb_router_destroy(mixtral);
  moeb_router* deepseek = NULL;
  CHECK(moeb_router_create("deepseek_v3", &deepseek) == moeb_ok);
  CHECK(moeb_saved_bytes(deepseek, 4, 8, INT64_C(1) << 60) == SIZE_MAX);
  CHECK(moeb_saved_bytes(deepseek, 4, INT32_C(1) << 30, INT64_C(1) << 30) == SIZE_MAX);
  CHECK(moeb_has_load(deepseek) && moeb_update(deepseek, NULL, NULL, 8, 1) == moeb_invalid_argument);
  moeb_router_destroy(deepseek);
}

/* A pool of one thread, which takes the last part first. `context` counts parts. */
static void last_part_first(void* context, int parts, moeb_part part, const void* work) {
  for (int i = parts - 1; i >= 0; --i) part(work, i);
  *(int*)context += parts;
}

static void executor(void) {
  enum { many = 4096, mixtral_k = 2 };
  moeb_router* router = NULL;
  CHECK(moeb_router_create("mixtral", &router) == moeb_ok);
  float* const logits = malloc(sizeof(float) * many * experts);
  float* const weights = malloc(sizeof(float) * many * mixtral_k);
  int32_t* const ids = malloc(sizeof(int32_t) * many * mixtral_k);
  int32_t* const ids_alone = malloc(sizeof(int32_t) * many * mixtral_k);
  for (int i = 0; i < many * experts; ++i) logits[i] = (float)((i * 7919) % 10007) / 5000.0f - 1.0f;
  moeb_forward_args args = {
      .size = sizeof args,
      .logits = {.data = logits, .type = moeb_float32, .rows = many, .columns = experts, .stride = experts},
      .experts = ids_alone,
      .weights = {.data = weights, .type = moeb_float32, .rows = many, .columns = mixtral_k, .stride = mixtral_k},
      .threads = 1};
  CHECK(moeb_route(router, &args) == moeb_ok);
  args.experts = ids;
  args.threads = 2;
  int parts_run = 0;
  CHECK(moeb_set_executor(router, last_part_first, &parts_run) == moeb_ok);
  CHECK(moeb_route(router, &args) == moeb_ok);
  CHECK(parts_run == 2);
  CHECK(memcmp(ids, ids_alone, sizeof(int32_t) * many * mixtral_k) == 0);
  CHECK(moeb_set_executor(router, NULL, NULL) == moeb_ok);
  CHECK(moeb_route(router, &args) == moeb_ok);
  CHECK(parts_run == 2);
  CHECK(moeb_set_executor(NULL, last_part_first, &parts_run) == moeb_invalid_argument);
  free(logits);
  free(weights);
  free(ids);
  free(ids_alone);
  moeb_router_destroy(router);
}

int main(void) {
  one_step_of_training();
  executor();
  presets();
  printf("moe_balance %s: %d failures\n", moeb_version(), failures);
  return failures == 0 ? 0 : 1;
}
