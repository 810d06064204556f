#!/usr/bin/env python3
"""record_huggingface.py FOLDER [--deepseek-vl2 FILE] [--megablocks FILE]: records what the routers of Hugging Face's transformers do.

Needs PyTorch and transformers (README.md says which versions recorded the files here). Two losses are in no package: --deepseek-vl2 is
deepseek_vl2/models/modeling_deepseek.py of github.com/deepseek-ai/DeepSeek-VL2, whose MoEGate has DeepSeek-V2's loss, and --megablocks is
megablocks/layers/moe.py of branch `olmoe` of github.com/Muennighoff/megablocks, which OLMoE was trained with. Their cases are left out without the files.

The gate's matrix is the identity, so that hidden states are logits and their gradients the logits'. Everything runs in float32 on the CPU, as the
modules do by themselves. Logits are drawn again until nothing that is ranked is near a tie.
"""

import argparse
import ast
import json
import math
import pathlib
import types

import torch
import torch.nn.functional
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.deepseek_v4 import modeling_deepseek_v4
from transformers.models.glm4_moe import modeling_glm4_moe
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.llama4 import modeling_llama4
from transformers.models.longcat_flash import modeling_longcat_flash
from transformers.models.minimax_m2 import modeling_minimax_m2
from transformers.models.mixtral import modeling_mixtral
from transformers.models.olmoe import modeling_olmoe
from transformers.models.qwen3_moe import modeling_qwen3_moe
from transformers.models.switch_transformers import modeling_switch_transformers as switch

SMALLEST_GAP = 1e-3  # between neighbours of a ranking; float32 is a thousand times finer


def numbers(tensor):
    """A flat list; float32 with as many digits as tell it apart."""
    values = tensor.detach().flatten()
    return [float(str(v)) for v in values.numpy()] if values.is_floating_point() else values.tolist()


def separated(values, count):
    """Whether the `count` largest of each row, and the next one, lie apart."""
    best = values.topk(min(count + 1, values.shape[1]), 1).values
    return bool((best[:, :-1] - best[:, 1:] > SMALLEST_GAP).all())


def logits_for(seed, tokens, experts, is_separated):
    """Low ids are favoured, so that no loss is that of a balanced router."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    while len(rows) < tokens:
        row = 1.5 * torch.randn(1, experts, generator=generator) - torch.arange(experts) / experts
        if is_separated(row):
            rows.append(row)
    return torch.cat(rows)


def group_values(ranking, groups, top):
    return ranking.view(len(ranking), groups, -1).topk(top, 2).values.sum(2)


def with_identity(router, experts):
    with torch.no_grad():
        router.weight.copy_(torch.eye(experts))
    return router


class Case:
    """One file: what went in, and what comes out of `routing`, which gives ids and weights [T, K] of logits [T, E]."""

    def __init__(self, name, kind, source, seed, logits, top_k, **config):
        self.logits = logits
        tokens, experts = logits.shape
        self.record = {"name": name, "kind": kind, "source": source, "config": {"tokens": tokens, "experts": experts, "top_k": top_k, **config},
                       "inputs": {"logits": numbers(logits)}, "expected": {}}
        self.grad_weights = torch.randn(tokens, top_k, generator=torch.Generator().manual_seed(1000 + seed))

    def routing(self, function, ranking, bias=None):
        """Slots are put into the order of `ranking` [T, E], best first: some of the modules leave them as they come."""
        x = self.logits.clone().requires_grad_()
        ids, weights = function(x)
        order = ranking.gather(1, ids).argsort(1, descending=True)
        weights = weights.gather(1, order)
        self.ids = ids.gather(1, order)
        (weights * self.grad_weights).sum().backward()
        self.record["inputs"].update(expert_bias=None if bias is None else numbers(bias), grad_weights=numbers(self.grad_weights))
        self.record["expected"].update(experts=numbers(self.ids), weights=numbers(weights), grad_logits=numbers(x.grad),
                                       counts=numbers(torch.bincount(self.ids.flatten(), minlength=x.shape[1])))
        return self

    def loss(self, function, name="loss"):
        """A loss of the logits, its coefficient 1, and its gradient."""
        x = self.logits.clone().requires_grad_()
        value = function(x)
        value.backward()
        self.record["expected"].update({name: numbers(value)[0], f"{name}_grad_logits": numbers(x.grad)})
        return self

    def write(self, folder):
        path = pathlib.Path(folder, self.record["name"] + ".json")
        path.write_text(json.dumps(self.record, separators=(",", ":")) + "\n", encoding="utf-8")
        print(path.name, path.stat().st_size, "bytes")


def plain_config(scoring, renormalize, **more):
    return {"scoring": scoring, "renormalize": renormalize, "scaling_factor": 1.0, "groups": 0, "groups_kept": 0, **more}


def loss_config(frequency):
    return {"loss": "switch", "loss_frequency": frequency}


def switch_case(seed, tokens, experts):
    logits = logits_for(seed, tokens, experts, lambda row: separated(torch.softmax(row, 1), 1))
    config = switch.SwitchTransformersConfig(num_experts=experts, d_model=experts, expert_capacity=tokens)
    router = switch.SwitchTransformersTop1Router(config).eval()
    with_identity(router.classifier, experts)

    def route(x):
        one_hot, weights, router_logits = router(x[None])
        assert torch.equal(router_logits[0], x) and bool((one_hot.sum(2) == 1).all())
        return one_hot[0].argmax(1, keepdim=True), weights[0]

    case = Case(f"switch_t{tokens}_e{experts}_k1", "route_and_loss",
                "Hugging Face SwitchTransformersTop1Router, load_balancing_loss_func and router_z_loss_func", seed, logits, 1,
                **plain_config("softmax", False, **loss_config("per_token")))
    case.routing(route, logits)

    def by_sequence(values, sequences):  # the loss is taken of each row of a batch; token t is of row t % sequences
        return values.view(tokens // sequences, sequences, -1).transpose(0, 1)

    case.loss(lambda x: switch.load_balancing_loss_func(torch.softmax(x[None], 2), case.ids.T))
    capacity = math.ceil(tokens / experts)
    router.expert_capacity = capacity
    kept = router(logits[None])[0][0].sum(1, keepdim=True).bool()
    case.record["config"]["capacity"] = capacity
    case.record["expected"]["experts_within_capacity"] = numbers(case.ids.masked_fill(~kept, -1))
    if tokens % 4 == 0:
        case.record["config"]["sequences"] = 4
        case.loss(lambda x: switch.load_balancing_loss_func(torch.softmax(by_sequence(x, 4), 2), by_sequence(case.ids, 4)[:, :, 0]), "sequence_loss")
    return case.loss(lambda x: switch.router_z_loss_func(x[None]), "z_loss")


def llama4_case(seed, tokens, experts):
    logits = logits_for(seed, tokens, experts, lambda row: separated(row, 1))
    router = modeling_llama4.Llama4Router(modeling_llama4.Llama4TextConfig(hidden_size=experts, num_local_experts=experts, num_experts_per_tok=1))
    with_identity(router, experts)

    def route(x):
        scores, _ = router(x)
        ids = scores.detach().argmax(1, keepdim=True)
        assert int((scores != 0).sum()) == len(x)
        return ids, scores.gather(1, ids)

    return Case(f"llama4_t{tokens}_e{experts}_k1", "route", "Hugging Face Llama4Router", seed, logits, 1,
                **plain_config("sigmoid", False)).routing(route, logits)


def top_k_case(name, module, router_type, config, loss_name, seed, tokens, experts, top_k, **options):
    """The routers that give (logits, weights, ids), and the loss over all layers, of which there is one here."""
    logits = logits_for(seed, tokens, experts, lambda row: separated(row, top_k) and separated(torch.softmax(row, 1) * 10, top_k))
    router = with_identity(router_type(config), experts)

    def route(x):
        router_logits, weights, ids = router(x)
        assert torch.equal(router_logits, x)
        return ids, weights

    kind = "route_and_loss" if loss_name else "route"
    source = f"Hugging Face {router_type.__name__}" + (f" and {loss_name}" if loss_name else "")
    case = Case(f"{name}_t{tokens}_e{experts}_k{top_k}", kind, source, seed, logits, top_k, **plain_config(**options)).routing(route, logits)
    if loss_name == "load_balancing_loss_func":
        case.loss(lambda x: module.load_balancing_loss_func((x,), experts, top_k))
    return case


def mixtral_case(seed, tokens, experts):
    config = modeling_mixtral.MixtralConfig(hidden_size=experts, num_local_experts=experts, num_experts_per_tok=2)
    return top_k_case("mixtral", modeling_mixtral, modeling_mixtral.MixtralTopKRouter, config, "load_balancing_loss_func", seed, tokens, experts, 2,
                      scoring="softmax", renormalize=True, **loss_config("per_token"))


def mixtral_masked_case(seed, tokens, experts):
    """The loss where an attention mask leaves tokens out, as a loss per assignment of K times the coefficient."""
    logits = logits_for(seed, tokens, experts, lambda row: separated(torch.softmax(row, 1) * 10, 2))
    padding = (torch.arange(tokens) % 5 == 3).long()
    case = Case(f"mixtral_masked_t{tokens}_e{experts}_k2", "balance_loss", "Hugging Face Mixtral load_balancing_loss_func with attention_mask", seed, logits,
                2, scoring="softmax", coefficient=2.0, loss="micro_batch")
    case.record["inputs"]["padding"] = numbers(padding)
    case.loss(lambda x: modeling_mixtral.load_balancing_loss_func((x,), experts, 2, 1 - padding[None]))
    chosen = logits[padding == 0].topk(2, 1).indices
    case.record["expected"].update(counts=numbers(torch.bincount(chosen.flatten(), minlength=experts)),
                                   grad_logits=case.record["expected"].pop("loss_grad_logits"))
    return case


def qwen3_case(seed, tokens, experts):
    config = modeling_qwen3_moe.Qwen3MoeConfig(hidden_size=experts, num_experts=experts, num_experts_per_tok=8, norm_topk_prob=True)
    return top_k_case("qwen3", modeling_qwen3_moe, modeling_qwen3_moe.Qwen3MoeTopKRouter, config, "load_balancing_loss_func", seed, tokens, experts, 8,
                      scoring="softmax", renormalize=True, **loss_config("per_token"))


def gpt_oss_case(seed, tokens, experts):
    config = modeling_gpt_oss.GptOssConfig(hidden_size=experts, num_local_experts=experts, num_experts_per_tok=4)
    return top_k_case("gpt_oss", modeling_gpt_oss, modeling_gpt_oss.GptOssTopKRouter, config, None, seed, tokens, experts, 4,
                      scoring="softmax_over_selected", renormalize=True)


def definitions(path, names, namespace):
    """Functions, classes and assignments of a source file, as they stand there, without what the file imports."""
    tree = ast.parse(pathlib.Path(path).read_text(encoding="utf-8"))

    def wanted(node):
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        return any(getattr(target, "name", getattr(target, "id", None)) in names for target in targets)

    module = ast.Module([ast.ImportFrom("__future__", [ast.alias("annotations")], 0), *filter(wanted, tree.body)], [])
    exec(compile(ast.fix_missing_locations(module), path, "exec"), namespace)
    return types.SimpleNamespace(**namespace)


def olmoe_case(seed, tokens, experts, megablocks_file):
    """Routing is Hugging Face's; the losses, which it has not or otherwise, are those of training. Their z-loss is divided by K, too."""
    config = modeling_olmoe.OlmoeConfig(hidden_size=experts, num_experts=experts, num_experts_per_tok=8, norm_topk_prob=False)
    case = top_k_case("olmoe", modeling_olmoe, modeling_olmoe.OlmoeTopKRouter, config, "MegaBlocks batched_load_balancing_loss", seed, tokens, experts, 8,
                      scoring="softmax", renormalize=False, **loss_config("per_assignment"))
    megablocks = definitions(megablocks_file, ("_LOAD_BALANCING_LOSS", "save_load_balancing_loss", "get_load_balancing_loss",
                                               "clear_load_balancing_loss", "batched_load_balancing_loss"), {"torch": torch})
    arguments = types.SimpleNamespace(moe_loss_weight=1.0, moe_zloss_weight=1.0, num_layers=1, pipeline_model_parallel_size=1, moe_num_experts=experts,
                                      num_layers_per_virtual_pipeline_stage=None, moe_lbl_in_fp32=False, moe_top_k=8)

    def losses(x):
        megablocks.clear_load_balancing_loss()
        megablocks.save_load_balancing_loss((torch.bincount(case.ids.flatten(), minlength=experts), x.softmax(-1), x))
        return megablocks.batched_load_balancing_loss(arguments)

    case.loss(lambda x: losses(x)[0])
    case.loss(lambda x: losses(x)[1], "z_loss")
    case.record["config"]["note"] = "z_loss is mean_t (logsumexp x_t)^2 / top_k"
    return case


def deepseek_v3_case(seed, tokens):
    experts, groups, kept, top_k = 256, 8, 4, 8
    bias = 0.1 * torch.randn(experts, generator=torch.Generator().manual_seed(2000 + seed))

    def is_separated(row):
        ranking = torch.sigmoid(row) + bias
        return separated(ranking, top_k) and separated(group_values(ranking, groups, 2), groups)

    logits = logits_for(seed, tokens, experts, is_separated)
    config = modeling_deepseek_v3.DeepseekV3Config(hidden_size=experts)
    assert (config.n_group, config.topk_group, config.num_experts_per_tok, config.routed_scaling_factor) == (groups, kept, top_k, 2.5)
    router = with_identity(modeling_deepseek_v3.DeepseekV3TopkRouter(config), experts)
    router.e_score_correction_bias.copy_(bias)
    case = Case(f"deepseek_v3_gradient_t{tokens}_e{experts}_k{top_k}_g{groups}", "route", "Hugging Face DeepseekV3TopkRouter", seed, logits, top_k,
                scoring="sigmoid", renormalize=True, scaling_factor=2.5, groups=groups, groups_kept=kept, group_score_top=2)
    return case.routing(lambda x: router(x)[:0:-1], torch.sigmoid(logits) + bias, bias)


def biased_case(name, router, seed, tokens, scoring="sigmoid", score=torch.sigmoid, scaling=1.0, takes_bias=False):
    """A router of elementwise scores with a bias, which renormalises and has no groups; of the K it chooses only the order is this function's."""
    experts, top_k = router.num_experts, router.top_k
    assert getattr(router, "num_group", 1) == getattr(router, "topk_group", 1) == 1 and getattr(router, "norm_topk_prob", True)
    assert getattr(router, "routed_scaling_factor", 1.0) == scaling
    bias = 0.1 * torch.randn(experts, generator=torch.Generator().manual_seed(2000 + seed))
    logits = logits_for(seed, tokens, experts, lambda row: separated(score(row) + bias, top_k))
    with_identity(router, experts)
    if not takes_bias:
        router.e_score_correction_bias.copy_(bias)
    case = Case(f"{name}_t{tokens}_e{experts}_k{top_k}", "route", f"Hugging Face {type(router).__name__}", seed, logits, top_k,
                **{**plain_config(scoring, True), "scaling_factor": scaling})
    return case.routing(lambda x: (router(x, bias) if takes_bias else router(x))[:0:-1], score(logits) + bias, bias)


def kimi_k2_case(seed, tokens):
    """Its published code is DeepSeek-V3's."""
    config = modeling_deepseek_v3.DeepseekV3Config(hidden_size=384, n_routed_experts=384, n_group=1, topk_group=1, routed_scaling_factor=2.827)
    return biased_case("kimi_k2", modeling_deepseek_v3.DeepseekV3TopkRouter(config), seed, tokens, scaling=2.827)


def glm_4_5_case(seed, tokens):
    config = modeling_glm4_moe.Glm4MoeConfig(hidden_size=160, n_routed_experts=160, routed_scaling_factor=2.5)
    return biased_case("glm_4_5", modeling_glm4_moe.Glm4MoeTopkRouter(config), seed, tokens, scaling=2.5)


def deepseek_v4_case(seed, tokens):
    router = modeling_deepseek_v4.DeepseekV4TopKRouter(modeling_deepseek_v4.DeepseekV4Config(hidden_size=256))
    return biased_case("deepseek_v4", router, seed, tokens, "sqrt_softplus", lambda x: torch.nn.functional.softplus(x).sqrt(), 1.5)


def minimax_m2_case(seed, tokens):
    router = modeling_minimax_m2.MiniMaxM2TopKRouter(modeling_minimax_m2.MiniMaxM2Config(hidden_size=256))
    return biased_case("minimax_m2", router, seed, tokens, takes_bias=True)


def longcat_flash_case(seed, tokens):
    experts, zero, top_k = 768, 256, 12
    bias = 1e-3 * torch.randn(experts, generator=torch.Generator().manual_seed(2000 + seed))
    # Scores are a thousandth.
    logits = logits_for(seed, tokens, experts, lambda row: separated(100 * (torch.softmax(row, 1) + bias), top_k))
    config = modeling_longcat_flash.LongcatFlashConfig(hidden_size=experts, n_routed_experts=experts - zero, zero_expert_num=zero)
    assert (config.moe_topk, config.routed_scaling_factor) == (top_k, 6.0)
    router = modeling_longcat_flash.LongcatFlashTopkRouter(config)
    with_identity(router.classifier, experts)
    router.e_score_correction_bias.copy_(bias)

    def route(x):
        *_, first, second = router(x)
        return (second, first) if first.is_floating_point() else (first, second)

    case = Case(f"longcat_flash_t{tokens}_e{experts}_k{top_k}", "route", "Hugging Face LongcatFlashTopkRouter", seed, logits, top_k,
                **{**plain_config("softmax", False), "scaling_factor": 6.0, "zero_experts": zero})
    return case.routing(route, torch.softmax(logits, 1) + bias, bias)


def deepseek_v2_case(seed, sequences, tokens_per_sequence, deepseek_file):
    experts, groups, kept, top_k = 160, 8, 3, 6
    source = definitions(deepseek_file, ("MoEGate",), {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "math": math})

    def is_separated(row):
        scores = torch.softmax(row, 1) * 10
        return separated(scores, top_k) and separated(group_values(scores, groups, 1), groups)

    logits = logits_for(seed, sequences * tokens_per_sequence, experts, is_separated)
    gate = source.MoEGate(types.SimpleNamespace(
        num_experts_per_tok=top_k, n_routed_experts=experts, routed_scaling_factor=16.0, scoring_func="softmax", aux_loss_alpha=1.0, seq_aux=True,
        topk_method="group_limited_greedy", n_group=groups, topk_group=kept, norm_topk_prob=False, hidden_size=experts)).train()
    with_identity(gate, experts)

    def by_sequence(x):  # the gate has one sequence behind the other
        ids, weights, loss = gate(x.view(tokens_per_sequence, sequences, experts).transpose(0, 1).contiguous())
        interleaved = lambda slots: slots.view(sequences, tokens_per_sequence, top_k).transpose(0, 1).reshape(-1, top_k)
        return interleaved(ids), interleaved(weights), loss

    case = Case(f"deepseek_v2_loss_t{len(logits)}_e{experts}_k{top_k}_g{groups}", "route", "DeepSeek-VL2 MoEGate with seq_aux", seed, logits, top_k,
                scoring="softmax", renormalize=False, scaling_factor=16.0, groups=groups, groups_kept=kept, group_score_top=1,
                loss="sequence", sequences=sequences, tokens_per_sequence=tokens_per_sequence, layout="token t belongs to sequence t % sequences")
    case.routing(lambda x: by_sequence(x)[:2], torch.softmax(logits, 1))
    return case.loss(lambda x: by_sequence(x)[2])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--deepseek-vl2")
    parser.add_argument("--megablocks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [
        switch_case(1, 20, 8),
        switch_case(2, 24, 16),
        switch_case(3, 9, 128),
        llama4_case(4, 20, 8),
        llama4_case(5, 24, 16),
        llama4_case(6, 9, 128),
        mixtral_case(7, 20, 8),
        mixtral_masked_case(14, 20, 8),
        qwen3_case(8, 9, 128),
        gpt_oss_case(9, 12, 32),
        gpt_oss_case(10, 8, 128),
        deepseek_v3_case(11, 6),
        longcat_flash_case(15, 4),
        kimi_k2_case(16, 5),
        glm_4_5_case(17, 8),
        deepseek_v4_case(18, 6),
        minimax_m2_case(19, 6),
    ]
    if arguments.megablocks:
        cases.append(olmoe_case(12, 12, 64, arguments.megablocks))
    if arguments.deepseek_vl2:
        cases.append(deepseek_v2_case(13, 2, 5, arguments.deepseek_vl2))
    for case in cases:
        case.write(arguments.folder)


if __name__ == "__main__":
    main()
