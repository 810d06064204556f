// Presets: the routers of published models, each with its source. The number of experts is the logits' and is named here for reference.
//
//   const mb::presets::DeepSeekV3<> router;                                        // as published
//   const auto distributed = mb::presets::Qwen3<>{}.with(mb::NcclSync{comm});      // the same, sums over ranks
//   const auto inference = mb::presets::DeepSeekV3<>{}.with(mb::LossFreeBias{.frozen = true});  // the same routing by the trained bias, no losses
//
// A preset is a Router: its options stay fields (`router.top_k.scaling_factor`), and every call takes it. "Published" is what the model's
// paper states or, where it is silent, the default of its reference code, and each comment says which.
#pragma once

#include <moe_balance/balancer/aux_loss.hpp>
#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/balancer/from_plain_top_k.hpp>
#include <moe_balance/balancer/global_batch_loss.hpp>
#include <moe_balance/balancer/loss_free_bias.hpp>
#include <moe_balance/balancer/no_balancer.hpp>
#include <moe_balance/balancer/proportional_bias.hpp>
#include <moe_balance/balancer/sequence_loss.hpp>
#include <moe_balance/balancer/with_zero_computation.hpp>
#include <moe_balance/balancer/z_loss.hpp>
#include <moe_balance/router.hpp>
#include <moe_balance/scoring/sigmoid.hpp>
#include <moe_balance/scoring/softmax.hpp>
#include <moe_balance/scoring/softmax_over_selected.hpp>
#include <moe_balance/scoring/sqrt_softplus.hpp>
#include <moe_balance/sync/single_device.hpp>
#include <moe_balance/topk/group_limited_top_k.hpp>
#include <moe_balance/topk/top_k.hpp>

#include <concepts>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

namespace presets {

/// What a model publishes: its scoring, its selection and its balancer, each with its options.
template <class M>
concept Model = ScoringPolicy<std::remove_const_t<decltype(M::scoring)>> &&
    TopKPolicy<std::remove_const_t<decltype(M::top_k)>> && BalancerPolicy<std::remove_const_t<decltype(M::balancer)>>;

/// The scoring of a model.
template <Model M>
using ScoringOf = std::remove_const_t<decltype(M::scoring)>;
/// The selection of a model.
template <Model M>
using TopKOf = std::remove_const_t<decltype(M::top_k)>;
/// The balancer of a model.
template <Model M>
using BalancerOf = std::remove_const_t<decltype(M::balancer)>;

/// The router of model M. A balancer of the published type has the published coefficients, another type its own defaults.
template <Model M, class Balancer = BalancerOf<M>, class Sync = SingleDevice>
struct Preset : Router<ScoringOf<M>, TopKOf<M>, Balancer, Sync> {
  /// The router that a preset is.
  using Base = Router<ScoringOf<M>, TopKOf<M>, Balancer, Sync>;

  /// As published.
  constexpr Preset() requires(std::default_initializable<Sync>) : Preset(published_or_default(), Sync{}) {}
  /// With another balancer of this type.
  constexpr explicit Preset(const Balancer& its_balancer) requires(std::default_initializable<Sync>)
      : Preset(its_balancer, Sync{}) {}
  /// With another balancer and Sync of these types.
  constexpr Preset(const Balancer& its_balancer, const Sync& its_sync)
      : Preset(M::scoring, M::top_k, its_balancer, its_sync) {}
  /// With other options of all four.
  constexpr Preset(const ScoringOf<M>& its_scoring, const TopKOf<M>& its_top_k, const Balancer& its_balancer,
                   const Sync& its_sync)
      : Base{its_scoring, its_top_k, its_balancer, its_sync} {}

  /// The same router, its options as they are now, with another balancer.
  template <BalancerPolicy Other>
  [[nodiscard]] constexpr Preset<M, Other, Sync> with(const Other& other) const {
    return {this->scoring, this->top_k, other, this->sync};
  }
  /// The same router with another Sync.
  template <SyncPolicy Other>
  [[nodiscard]] constexpr Preset<M, Balancer, Other> with(const Other& other) const {
    return {this->scoring, this->top_k, this->balancer, other};
  }
  /// What is neither: refused, with what either lacks.
  template <class Other>
  void with(const Other& /*other*/) const {
    static_assert(
        BalancerPolicy<Other> || SyncPolicy<Other>,
        "the Sync lacks: sync.ranks() const -> int; or the balancer lacks one of: balancer.slope(expert, load) const -> "
        "float; balancer.next_bias(bias, expert, load) const -> float (or, with memory, BiasStep); balancer.token_loss and "
        "token_slope");
  }

 private:
  [[nodiscard]] static constexpr Balancer published_or_default() {
    if constexpr (std::same_as<Balancer, BalancerOf<M>>)
      return M::balancer;
    else
      return Balancer{};
  }
};

/// DeepSeek-V3: 256 experts in 8 groups of which 4 are kept, K = 8, one shared expert besides.
/// Source: arXiv 2412.19437, section 2.1.2 (routing, bias, sequence loss) and 4.2: bias update speed 0.001, "alpha" 0.0001. The bias was frozen
/// (`frozen`) for the last 500 billion tokens. Scaling 2.5, the groups, and that a group counts its best two: inference/model.py and
/// inference/configs/config_671B.json of its repository. The config published with the weights has aux_loss_alpha 0.001, which transformers 5.24 does not read.
/// The f_i of the loss, eq. (18), counts a top-k of the scores without bias and groups, other than the routing of eq. (16); so does Megatron-Core's.
struct DeepSeekV3Model {
  static constexpr Sigmoid scoring{};
  static constexpr GroupLimitedTopK<8> top_k{
      .groups = 8, .groups_kept = 4, .group_score_top = 2, .renormalise = true, .scaling_factor = 2.5f};
  static constexpr Combine<LossFreeBias, FromPlainTopK<SequenceLoss>> balancer{
      LossFreeBias{.update_rate = 1e-3f}, FromPlainTopK<SequenceLoss>{SequenceLoss{.coefficient = 1e-4f}}};
};
template <class Balancer = BalancerOf<DeepSeekV3Model>, class Sync = SingleDevice>
using DeepSeekV3 = Preset<DeepSeekV3Model, Balancer, Sync>;

/// DeepSeek-V4: 256 experts (Flash), K = 6, no groups, weights renormalised, times 1.5. One shared expert besides. The first three layers take their experts from a table by token id:
/// Router{SqrtSoftplus{}, Replay{DeepSeekV4Model::top_k}} with ReplayRef, whose weights come from the scores all the same.
/// Source: Hugging Face's modeling_deepseek_v4.py and its configuration, which is DeepSeek-V4-Flash's (scoring_func sqrtsoftplus, routed_scaling_factor 1.5); of other sizes set `scaling_factor` from
/// their configs. The rate of the bias is DeepSeek-V3's; what else balanced the load in training is not taken over.
struct DeepSeekV4Model {
  static constexpr SqrtSoftplus scoring{};
  static constexpr TopK<6> top_k{.renormalise = true, .scaling_factor = 1.5f};
  static constexpr LossFreeBias balancer{.update_rate = 1e-3f};
};
template <class Balancer = BalancerOf<DeepSeekV4Model>, class Sync = SingleDevice>
using DeepSeekV4 = Preset<DeepSeekV4Model, Balancer, Sync>;

/// MiniMax-M2: 256 experts, K = 8, no groups, weights renormalised.
/// Source: Hugging Face's modeling_minimax_m2.py and its configuration. The rate of the bias is DeepSeek-V3's; what else balanced the load
/// in training, and the configuration's router_aux_loss_coef, 0.001, are not taken over.
struct MiniMaxM2Model {
  static constexpr Sigmoid scoring{};
  static constexpr TopK<8> top_k{.renormalise = true, .scaling_factor = 1.0f};
  static constexpr LossFreeBias balancer{.update_rate = 1e-3f};
};
template <class Balancer = BalancerOf<MiniMaxM2Model>, class Sync = SingleDevice>
using MiniMaxM2 = Preset<MiniMaxM2Model, Balancer, Sync>;

/// Kimi K2: 384 experts, K = 8, no groups, weights renormalised, times 2.827. One shared expert besides.
/// Source: the published config (model_type kimi_k2: n_group 1, norm_topk_prob true, topk_method noaux_tc, routed_scaling_factor 2.827), whose code is
/// DeepSeek-V3's; arXiv 2507.20534. The rate of the bias is DeepSeek-V3's; what else balanced the load in training, and the config's aux_loss_alpha, 0.001, which is DeepSeek-V3's, too,
/// are not taken over.
struct KimiK2Model {
  static constexpr Sigmoid scoring{};
  static constexpr TopK<8> top_k{.renormalise = true, .scaling_factor = 2.827f};
  static constexpr LossFreeBias balancer{.update_rate = 1e-3f};
};
template <class Balancer = BalancerOf<KimiK2Model>, class Sync = SingleDevice>
using KimiK2 = Preset<KimiK2Model, Balancer, Sync>;

/// GLM-4.5: 160 experts, K = 8, weights renormalised, times 2.5; GLM-4.5-Air has 128 experts and a scaling of 1: set `scaling_factor`. One shared expert besides.
/// Source: arXiv 2508.06471: sigmoid gates, loss-free balancing at a rate of 0.001 for the first 15T tokens and 0 (`frozen`) for the rest, and a sequence-level balance
/// loss of 0.0001, whose f it does not define; here it is the actual routing. Scaling, and that weights are renormalised: the published configs and Hugging Face's modeling_glm4_moe.py.
struct Glm45Model {
  static constexpr Sigmoid scoring{};
  static constexpr TopK<8> top_k{.renormalise = true, .scaling_factor = 2.5f};
  static constexpr Combine<LossFreeBias, SequenceLoss> balancer{LossFreeBias{.update_rate = 1e-3f},
                                                                SequenceLoss{.coefficient = 1e-4f}};
};
template <class Balancer = BalancerOf<Glm45Model>, class Sync = SingleDevice>
using Glm45 = Preset<Glm45Model, Balancer, Sync>;

/// DeepSeek-V2: 160 experts in 8 groups of which 3 are kept, by their best expert; K = 6, two shared experts besides.
/// Source: arXiv 2405.04434, section 2.2.3 and 3.1.2: expert-level loss 0.003 over each sequence (the published config has aux_loss_alpha
/// 0.001, the paper's value for V2-Lite). The paper's device-level loss, which needs the number of devices, is not in it: add
/// DeviceLoss{SequenceLoss{.coefficient = 0.05f}, devices}; nor is its communication loss: CommunicationLoss{SequenceLoss{.coefficient = 0.02f}, 8, 3} where the groups are the devices. Scaling 16, the
/// groups, and weights that are not renormalised: inference/configs/config_236B.json of DeepSeek-V3's repository.
struct DeepSeekV2Model {
  static constexpr Softmax scoring{};
  static constexpr GroupLimitedTopK<6> top_k{
      .groups = 8, .groups_kept = 3, .group_score_top = 1, .renormalise = false, .scaling_factor = 16.0f};
  static constexpr SequenceLoss balancer{.coefficient = 3e-3f};
};
template <class Balancer = BalancerOf<DeepSeekV2Model>, class Sync = SingleDevice>
using DeepSeekV2 = Preset<DeepSeekV2Model, Balancer, Sync>;

/// LongCat-Flash: 768 experts of which the last 256 return what they are given, K = 12, weights are the softmax over all, times 6.
/// Source: arXiv 2509.01322, section 2.1: a bias that is steered to K_e / (K N) of the assignments for each of the N experts that compute. Scaling, and
/// weights that are not renormalised: the published config (routed_scaling_factor 6, norm_topk_prob absent) and Hugging Face's modeling_longcat_flash.py,
/// where the scaling multiplies what zero-computation experts return, too. K_e is about 8. The bias's rate, which it lets decay, and the loss's coefficient are not the report's:
/// mu = 0.001 is DeepSeek-V3's, and the loss, which needs the number of devices, is not in it: add WithZeroComputation{DeviceLoss{AuxLoss{...}, devices}, 256, 8.0f}.
/// LongCat-Flash-Lite has 256 + 128 experts, LongCat-2.0 768 + 128 and a scaling of 9: set `zero_experts` and `scaling_factor`.
struct LongCatFlashModel {
  static constexpr Softmax scoring{};
  static constexpr TopK<12> top_k{.renormalise = false, .scaling_factor = 6.0f};
  static constexpr WithZeroComputation<ProportionalBias> balancer{
      ProportionalBias{.update_rate = 1e-3f * 8 / 12, .unit = ErrorUnit::total_load}, 256, 8.0f};
};
template <class Balancer = BalancerOf<LongCatFlashModel>, class Sync = SingleDevice>
using LongCatFlash = Preset<LongCatFlashModel, Balancer, Sync>;

/// Mixtral 8x7B and 8x22B: 8 experts, K = 2. Weights are a softmax over the two chosen, which is the softmax over all, renormalised.
/// Source: arXiv 2401.04088, section 2.1, which publishes no balancing. Loss: Hugging Face's load_balancing_loss_func, f_i = count_i / T,
/// with router_aux_loss_coef 0.02 of the published 8x7B config (MixtralConfig's own default is 0.001). Hugging Face takes f and P over all
/// layers at once, this router per layer.
struct MixtralModel {
  static constexpr Softmax scoring{};
  static constexpr TopK<2> top_k{.renormalise = true, .scaling_factor = 1.0f};
  static constexpr AuxLoss balancer{.coefficient = 2e-2f, .scale = LossScale::per_token};
};
template <class Balancer = BalancerOf<MixtralModel>, class Sync = SingleDevice>
using Mixtral = Preset<MixtralModel, Balancer, Sync>;

/// Qwen3-30B-A3B and 235B-A22B: 128 experts, K = 8, weights renormalised.
/// Source: arXiv 2505.09388, section 2: global-batch load balancing loss, of Qiu et al. 2025, arXiv 2501.11873. The report gives no coefficient;
/// 1e-3 is router_aux_loss_coef of the published config, which also has norm_topk_prob true; Hugging Face multiplies it by a loss of K times
/// this size. The report names no z-loss; `with(Combine{...})` adds one.
struct Qwen3Model {
  static constexpr Softmax scoring{};
  static constexpr TopK<8> top_k{.renormalise = true, .scaling_factor = 1.0f};
  static constexpr GlobalBatchLoss balancer{.coefficient = 1e-3f};
};
template <class Balancer = BalancerOf<Qwen3Model>, class Sync = SingleDevice>
using Qwen3 = Preset<Qwen3Model, Balancer, Sync>;

/// gpt-oss-120b (128 experts) and 20b (32): K = 4, softmax over the four chosen logits. The gate has a learned bias, part of its logits here.
/// Source: the gpt-oss model card, arXiv 2508.10925, and its torch/model.py. Neither publishes how load was balanced in training, so there is no
/// balancer. Hugging Face has a router_aux_loss_coef for fine-tuning, off by default: 0.9 in the published config, 0.001 by transformers 5.24's
/// default.
struct GptOssModel {
  static constexpr SoftmaxOverSelected scoring{};
  static constexpr TopK<4> top_k{.renormalise = true, .scaling_factor = 1.0f};
  static constexpr NoBalancer balancer{};
};
template <class Balancer = BalancerOf<GptOssModel>, class Sync = SingleDevice>
using GptOss = Preset<GptOssModel, Balancer, Sync>;

/// OLMoE-1B-7B: 64 experts, K = 8, weights are the softmax over all experts, not renormalised.
/// Source: arXiv 2409.02060, section 2: load balancing loss 0.01, router z-loss 0.001, as in configs/OLMoE-1B-7B-0924.yml of its repository; its
/// published config has norm_topk_prob false. Its training code (branch olmoe of Muennighoff/megablocks) divides the z-loss by K, too, and
/// takes both over all layers; here the z-loss is the paper's, 8 times that.
struct OlmoeModel {
  static constexpr Softmax scoring{};
  static constexpr TopK<8> top_k{.renormalise = false, .scaling_factor = 1.0f};
  static constexpr Combine<AuxLoss, ZLoss> balancer{AuxLoss{.coefficient = 1e-2f}, ZLoss{.coefficient = 1e-3f}};
};
template <class Balancer = BalancerOf<OlmoeModel>, class Sync = SingleDevice>
using Olmoe = Preset<OlmoeModel, Balancer, Sync>;

/// Switch Transformer: K = 1, the weight is the chosen expert's probability (one chosen score is never renormalised).
/// Source: arXiv 2101.03961, section 2.2: loss 0.01 of eq. (4). Hugging Face's configuration has 0.001, and a z-loss of 0.001, instead. The paper
/// also drops tokens above a capacity: see dispatch/capacity.hpp.
struct SwitchModel {
  static constexpr Softmax scoring{};
  static constexpr TopK<1> top_k{.renormalise = false, .scaling_factor = 1.0f};
  static constexpr AuxLoss balancer{.coefficient = 1e-2f};
};
template <class Balancer = BalancerOf<SwitchModel>, class Sync = SingleDevice>
using Switch = Preset<SwitchModel, Balancer, Sync>;

/// Llama 4 Scout (16 experts) and Maverick (128): K = 1, the weight is the sigmoid of the chosen logit. One shared expert besides.
/// Source: its reference code (models/llama4/moe.py) and Hugging Face's modeling_llama4.py. They rank logits, this router sigmoids of logits,
/// which tie where logits are large and near, and ties go to the smaller id: of float32 logits above 8 those 1e-4 apart, of bfloat16 ones neighbours from 13.5 on, of any above 17 all. Llama 4 multiplies the expert's input by the weight,
/// not its output: PermuteArgs::scale. How load was balanced is not published, so there is no balancer; the router_aux_loss_coef of Hugging
/// Face's Llama4TextConfig is read by none of its code (transformers 5.24).
struct Llama4Model {
  static constexpr Sigmoid scoring{};
  static constexpr TopK<1> top_k{.renormalise = false, .scaling_factor = 1.0f};
  static constexpr NoBalancer balancer{};
};
template <class Balancer = BalancerOf<Llama4Model>, class Sync = SingleDevice>
using Llama4 = Preset<Llama4Model, Balancer, Sync>;

}  // namespace presets

MOEB_NAMESPACE_END
