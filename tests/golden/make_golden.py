#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_golden.py OUT_DIR [FAMILY...]
make_golden.py --compare FAMILIES.DEF

Makes golden layers in the format of tests/data/golden with transformers and torch (both from PyPI; any machine, no GPU): a small random
model of each family, layer 0's MoE tensors under their published names, and what the library's own block computes for 74 tokens. The
small results are committed; this script says how they came to be and makes them for a family that is added. --compare lists the MoE
model types of the installed transformers that the table of families neither runs nor refuses, and fails if there are any.
"""

import importlib
import json
import os
import pathlib
import re
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

NUM_TOKENS = 74
BASE = {
    "hidden_size": 72, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 18,
    "vocab_size": 128, "max_position_embeddings": 256, "intermediate_size": 40,
    "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1,
}
MLA = {
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
    "num_key_value_heads": 4, "head_dim": 16, "first_k_dense_replace": 0,
}
SPARSE = {"mlp_layer_types": ["sparse"]}
SMALL = {"num_experts_per_tok": 5, "moe_intermediate_size": 24}
GROUPED = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True}
GEMMA = {"enable_moe_block": True, "num_experts": 20, "top_k_experts": 3, "moe_intermediate_size": 24, "layer_types": ["full_attention"],
         "global_head_dim": 18, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
# Sizes are small and awkward on purpose; what is not named is the family's default.
FAMILIES = {
    "afmoe": {"num_experts": 20, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "num_shared_experts": 1, "num_dense_layers": 0},
    "aria_text": {"moe_num_experts": 20, "moe_topk": 3, "moe_num_shared_experts": 2},
    "axk1": {**MLA, **SPARSE, **SMALL, **GROUPED, "n_routed_experts": 24, "n_shared_experts": 1},
    "axk2": {**MLA, **SPARSE, **SMALL, **GROUPED, "n_routed_experts": 24, "n_shared_experts": 1},
    "bailing_hybrid": {**MLA, **SPARSE, **SMALL, **GROUPED, "num_local_experts": 24, "n_shared_experts": 1,
                "layer_types": ["full_attention"]},
    "beam": {**SPARSE, **SMALL, **GROUPED, "num_experts": 24},
    "cohere2_moe": {"num_experts": 20, "num_experts_per_tok": 3, "first_k_dense_replace": 0},
    "dbrx": {"d_model": 72, "n_layers": 1, "n_heads": 4, "max_seq_len": 256, "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
             "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 16, "moe_top_k": 4}},
    "deepseek_ocr2_text": {**SPARSE, **SMALL, "n_routed_experts": 24, "n_shared_experts": 2},
    "deepseek_v2": {**MLA, "n_routed_experts": 24, "num_experts_per_tok": 5, "moe_intermediate_size": 24, "n_shared_experts": 2,
                    "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0,
                    "norm_topk_prob": False},
    "deepseek_v32": {**MLA, **SPARSE, **SMALL, **GROUPED, "n_routed_experts": 24, "n_shared_experts": 1},
    "diffusion_gemma_text": {**GEMMA},
    "dots1": {"n_routed_experts": 24, "num_experts_per_tok": 5, "moe_intermediate_size": 24, "n_shared_experts": 2, "n_group": 1,
              "topk_group": 1, "first_k_dense_replace": 0, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
    "dots3_note_text": {**MLA, **SPARSE, **SMALL, **GROUPED, "n_routed_experts": 24, "n_shared_experts": 2,
                "shared_experts_intermediate_size": 40},
    "ernie4_5_moe": {"moe_num_experts": 20, "moe_k": 5, "moe_intermediate_size": 24, "moe_num_shared_experts": 2,
                     "moe_layer_start_index": 0, "moe_layer_end_index": 0},
    "ernie4_5_vl_moe_text": {**SPARSE, "moe_num_experts": 20, "moe_k": 5, "moe_intermediate_size": [24, 16], "moe_num_shared_experts": 2,
                             "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 3]}},
    "exaone_moe": {"num_experts": 24, "num_experts_per_tok": 5, "moe_intermediate_size": 24, "num_shared_experts": 1,
                   "first_k_dense_replace": 0, "routed_scaling_factor": 2.5},
    "flex_olmo": {"num_experts": 7, "num_experts_per_tok": 5},
    "flint": {**SMALL, "num_experts": 24, "shared_expert_intermediate_size": 88, "mlp_only_layers": []},
    "gemma4_text": {**GEMMA},
    "glm4_moe": {"n_routed_experts": 24, "num_experts_per_tok": 5, "moe_intermediate_size": 24, "n_shared_experts": 1, "n_group": 1,
                 "topk_group": 1, "first_k_dense_replace": 0, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
    "glm4_moe_lite": {**MLA, "n_routed_experts": 24, "num_experts_per_tok": 4, "moe_intermediate_size": 24, "n_shared_experts": 1,
                      "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.8, "mlp_layer_types": ["sparse"]},
    "glm4v_moe_text": {**SMALL, **GROUPED, "n_routed_experts": 24, "n_shared_experts": 1, "first_k_dense_replace": 0},
    "glm_moe_dsa": {**MLA, **SPARSE, **SMALL, **GROUPED, "n_routed_experts": 24, "n_shared_experts": 1},
    "granitemoe": {"num_local_experts": 20, "num_experts_per_tok": 6},
    "granitemoe_swa": {"num_local_experts": 20, "num_experts_per_tok": 6, "shared_intermediate_size": 88},
    "granitemoehybrid": {"num_local_experts": 20, "num_experts_per_tok": 6, "shared_intermediate_size": 88,
                         "layer_types": ["attention"], "mamba_n_heads": 8, "mamba_d_head": 18},
    "granitemoeshared": {"num_local_experts": 20, "num_experts_per_tok": 6, "shared_intermediate_size": 88},
    "hunyuan_v1_moe": {"num_experts": 16, "moe_topk": 3},
    "hy_v3": {**SPARSE, **SMALL, "num_experts": 24, "num_shared_experts": 1, "router_scaling_factor": 2.5},
    "inkling_text": {**SPARSE, **SMALL, "n_routed_experts": 20, "n_shared_experts": 2, "swa_num_attention_heads": 4,
                     "swa_num_key_value_heads": 2, "swa_head_dim": 18},
    "jamba": {"num_experts": 8, "num_experts_per_tok": 2, "expert_layer_period": 1, "expert_layer_offset": 0, "attn_layer_period": 1,
              "attn_layer_offset": 0, "use_mamba_kernels": False},
    "jetmoe": {"num_local_experts": 16, "num_experts_per_tok": 3, "kv_channels": 18},
    "kimi_k2": {**MLA, "n_routed_experts": 24, "num_experts_per_tok": 5, "moe_intermediate_size": 24, "n_shared_experts": 1, "n_group": 1,
                "topk_group": 1, "routed_scaling_factor": 2.827, "norm_topk_prob": True},
    "kimi_linear": {**MLA, **SPARSE, **SMALL, **GROUPED, "num_local_experts": 24, "n_shared_experts": 1, "layer_types": ["full_attention"]},
    "kolibri1": {**SMALL, "num_experts": 24, "shared_expert_intermediate_size": 88, "layer_types": ["full_attention"]},
    "laguna": {**SPARSE, **SMALL, "num_experts": 24, "shared_expert_intermediate_size": 88, "moe_routed_scaling_factor": 2.5,
                "layer_types": ["full_attention"]},
    "lara_mini": {**SMALL, "num_experts": 24, "shared_expert_intermediate_size": 88, "layer_types": ["full_attention"]},
    "lfm2_moe": {"num_experts": 20, "num_experts_per_tok": 4, "moe_intermediate_size": 24, "num_dense_layers": 0,
                 "layer_types": ["full_attention"], "routed_scaling_factor": 1.5, "norm_topk_prob": True},
    "mellum": {**SMALL, "num_experts": 24, "norm_topk_prob": True},
    "mimo_v2_flash": {**SPARSE, **SMALL, **GROUPED, "n_routed_experts": 24},
    "minimax": {"num_local_experts": 8, "num_experts_per_tok": 2, "layer_types": ["full_attention"]},
    "minimax_m2": {"num_local_experts": 24, "num_experts_per_tok": 5},
    "minimax_m3_vl_text": {**SPARSE, "num_local_experts": 24, "num_experts_per_tok": 5, "shared_intermediate_size": 88},
    "mistral4": {**MLA, **SMALL, **GROUPED, "n_routed_experts": 24, "n_shared_experts": 1},
    "mistral_large4_text": {**MLA, **SPARSE, **SMALL, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5,
                "n_routed_experts": 24, "n_shared_experts": 1},
    "nemotron_h": {"n_routed_experts": 24, "num_experts_per_tok": 6, "moe_intermediate_size": 24, "n_shared_experts": 1,
                   "moe_shared_expert_intermediate_size": 72, "hybrid_override_pattern": "E", "layers_block_type": ["moe"],
                   "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
    "openai_privacy_filter": {"num_local_experts": 20, "num_experts_per_tok": 4},
    "phimoe": {"num_local_experts": 16, "num_experts_per_tok": 2, "router_jitter_noise": 0.01},
    "qwen3_5_moe_text": {**SMALL, "num_experts": 24, "shared_expert_intermediate_size": 88, "layer_types": ["full_attention"]},
    "qwen3_next": {"num_experts": 24, "num_experts_per_tok": 5, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 88,
                   "layer_types": ["full_attention"], "norm_topk_prob": True},
    "qwen3_omni_moe_talker_text": {**SMALL, "num_experts": 24, "norm_topk_prob": True, "shared_expert_intermediate_size": 88},
    "qwen3_omni_moe_text": {**SMALL, "num_experts": 24, "norm_topk_prob": True},
    "qwen3_vl_moe_text": {**SMALL, "num_experts": 24},
    "qwen4_exp_text": {**SMALL, "num_experts": 24, "shared_expert_intermediate_size": 88, "norm_topk_prob": True,
                "layer_types": ["linear_attention"]},
    "sarvam_mla": {**MLA, **SMALL, **GROUPED, "n_routed_experts": 24, "n_shared_experts": 1},
    "sarvam_moe": {**SMALL, **GROUPED, "n_routed_experts": 24, "n_shared_experts": 1, "first_k_dense_replace": 0},
    "solar_open": {"n_routed_experts": 24, "num_experts_per_tok": 5, "moe_intermediate_size": 24, "n_shared_experts": 1,
                   "first_k_dense_replace": 0, "routed_scaling_factor": 1.0},
    "step3p5": {**SPARSE, **SMALL, "n_routed_experts": 24, "share_expert_dim": 88, "moe_router_scaling_factor": 3.0,
                "swiglu_limits": [0.0], "swiglu_limits_shared": [0.0], "pad_token_id": 1, "layer_types": ["full_attention"]},
    "unlimited_ocr_text": {**SPARSE, **SMALL, "n_routed_experts": 24, "n_shared_experts": 2, "routed_scaling_factor": 2.0},
}

# Published with the code of another family, under a name of its own.
CODE_OF = {"kimi_k2": "deepseek_v3"}



def as_ernie_vl(name, tensor):
    """The experts of text before those of images, one router beside the other, and both biases in one tensor."""
    name = re.sub(r"\.(text|vision)_moe\.", lambda m: "." if m[1] == "text" else ".vision.", name)
    if ".vision." in name:
        return {}  # another layer, for other tokens
    head, _, part = name.rpartition(".experts.")
    if name.endswith(".gate.weight"):
        return {name: tensor.t()}
    if name.endswith(".e_score_correction_bias"):
        return {name.replace(".gate.", "."): torch.cat([tensor, torch.randn_like(tensor)])}
    if part == "gate_up_proj":
        halves = [each.chunk(2) for each in tensor]
        return {f"{head}.experts.{e}.{kind}_proj.weight": half[i] for e, half in enumerate(halves) for i, kind in enumerate(("gate", "up"))}
    if part == "down_proj":
        return {f"{head}.experts.{e}.down_proj.weight": down for e, down in enumerate(tensor)}
    return {name: tensor}


def as_inkling(name, tensor):
    """Gate and up rows alternate, also in the shared experts, whose two halves meet in `gather_inkling`."""
    if name.endswith(".experts.gate_up_proj"):
        gate, up = tensor.chunk(2, dim=1)
        return {name.replace("gate_up_proj", "w13_weight"): torch.stack([gate, up], dim=2).flatten(1, 2)}
    name = name.replace("shared_experts.down_proj", "shared_experts.shared_w2_weight").replace("experts.down_proj", "experts.w2_weight")
    return {name.replace("e_score_correction_bias", "bias"): tensor}


def gather_inkling(tensors):
    for name in [n for n in tensors if n.endswith("shared_experts.gate_proj")]:
        gate, up = tensors.pop(name), tensors.pop(name.replace("gate_proj", "up_proj"))
        tensors[name.replace("gate_proj", "shared_w13_weight")] = torch.stack([gate, up], dim=2).flatten(1, 2)


def as_step(name, tensor):
    """Experts in three stacks, beside a shared one, under names of their own."""
    name = name.replace(".mlp.shared_experts.", ".share_expert.").replace(".mlp.gate.e_score_correction_bias", ".moe.router_bias")
    name = name.replace(".mlp.gate.weight", ".moe.gate.weight").replace(".mlp.experts.down_proj", ".moe.down_proj.weight")
    if name.endswith(".mlp.experts.gate_up_proj"):
        gate, up = tensor.chunk(2, dim=1)
        name = name.replace("mlp.experts.gate_up_proj", "moe.{}_proj.weight")
        return {name.format("gate"): gate, name.format("up"): up}
    return {name: tensor}


# The text part of a model that has others: how its tensors' names begin where it is published, the model_type of the config.json around
# it, and what saving the part by itself does not show of the published tensors: a matrix per expert, matrices stored as [in, out], or
# what a function says.
WRAPPED = {
    "deepseek_ocr2_text": ("model.", "deepseek_ocr2", "per expert"),
    "diffusion_gemma_text": ("model.encoder.language_model.", "diffusion_gemma", None),
    "ernie4_5_vl_moe_text": ("model.", "ernie4_5_vl_moe", as_ernie_vl),
    "glm4v_moe_text": ("model.language_model.", "glm4v_moe", "per expert"),
    "inkling_text": ("model.llm.", "inkling_mm_model", as_inkling),
    "mistral4": ("language_model.model.", "mistral3", None),
    "mistral_large4_text": ("", "mistral_large4", "w1 w2 w3"),
    "openai_privacy_filter": ("model.", None, None),
    "qwen3_omni_moe_talker_text": ("talker.model.", None, "per expert"),
    "qwen3_omni_moe_text": ("thinker.model.", "qwen3_omni_moe", "per expert"),
    "qwen3_vl_moe_text": ("model.language_model.", "qwen3_vl_moe", "transposed"),
    "step3p5": ("model.", "step3p7", as_step),
    "unlimited_ocr_text": ("model.", "unlimited_ocr", "per expert"),
}

# What the library has in another unit than the layer: weights divided by top_k, and their sum multiplied by it; and what the layer, to
# which the routing is given, does not have.
NOT_RECORDED = {"kolibri1": ("router_logits",), "openai_privacy_filter": ("topk_weights", "experts_output")}


def text_model(config):
    """The class of a text part that no automatic class makes."""
    module = sys.modules[type(config).__module__.replace(".configuration_", ".modeling_")]
    classes = [getattr(module, name) for name in dir(module) if name.endswith("Model") and "PreTrained" not in name]
    return next(c for c in classes if getattr(c, "config_class", None) is type(config))


def publish(tensors, prefix, form):
    """A text part's tensors under their published names and in their published form."""
    published = {}
    for name, tensor in tensors.items():
        if callable(form):
            published.update({prefix + n: t for n, t in form(name, tensor).items()})
            continue
        head, _, part = name.rpartition(".experts.")
        if form == "transposed" and part in ("gate_up_proj", "down_proj"):
            tensor = tensor.transpose(1, 2)
        if form == "per expert" and part == "gate_up_proj":
            for e, (gate, up) in enumerate(each.chunk(2) for each in tensor):
                published[f"{prefix}{head}.experts.{e}.gate_proj.weight"] = gate
                published[f"{prefix}{head}.experts.{e}.up_proj.weight"] = up
        elif form == "per expert" and part == "down_proj":
            published.update({f"{prefix}{head}.experts.{e}.down_proj.weight": down for e, down in enumerate(tensor)})
        else:
            if form == "w1 w2 w3":
                for ours, theirs in (("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")):
                    name = name.replace(f"shared_experts.{ours}", f"shared_experts.{theirs}")
            published[prefix + name] = tensor
    gather_inkling(published)
    return {name: tensor.clone().contiguous() for name, tensor in published.items()}


def find_block(model):
    """The first module that routes to `experts`, and its name."""
    for name, module in model.named_modules():
        if hasattr(module, "experts") and not name.endswith("experts") or name.endswith(".mlp") and hasattr(module, "router"):
            return name, module
    raise SystemExit(f"{type(model).__name__} has no module with experts in its one layer")


def randomize(block):
    """Weights of a size that keeps activations near 1, and biases that change what is chosen."""
    for name, tensor in list(block.named_parameters()) + list(block.named_buffers()):
        if not tensor.is_floating_point():
            continue
        with torch.no_grad():
            if tensor.dim() >= 2:
                tensor.normal_(0.0, 1.5 * tensor.shape[-1] ** -0.5)
            elif "norm" in name:
                tensor.normal_(1.0, 0.1)
            else:
                tensor.normal_(0.0, 0.3)


def record(block, beside, hidden_states):
    """What goes into the experts and comes out, and what the whole block returns; a shared expert may stand beside the block."""
    seen = {}

    def on_experts(_module, arguments, keywords, output):
        values = list(arguments) + list(keywords.values())
        seen["topk_ids"] = values[1].to(torch.int32)
        seen["topk_weights"] = values[2].float()
        seen["experts_output"] = output.reshape(hidden_states.shape)

    def on_router(_module, _arguments, output):
        outputs = output if isinstance(output, tuple) else (output,)
        num_experts = seen.get("num_experts")
        logits = [o for o in outputs if o.dim() == 2 and o.shape[-1] == num_experts]
        if logits:
            seen["router_logits"] = logits[0]

    router = next((getattr(block, n) for n in ("gate", "router", "gate_proj") if hasattr(block, n)), None)
    weight = next(p for p in router.parameters() if p.dim() == 2)
    seen["num_experts"] = weight.shape[0]
    handles = [block.experts.register_forward_hook(on_experts, with_kwargs=True), router.register_forward_hook(on_router)]
    with torch.no_grad():
        output = block(hidden_states.unsqueeze(0))
    for handle in handles:
        handle.remove()
    del seen["num_experts"]
    seen["block_output"] = (output[0] if isinstance(output, tuple) else output).reshape(hidden_states.shape)
    if beside is not None:
        with torch.no_grad():
            seen["block_output"] = seen["block_output"] + beside(hidden_states)
    if hasattr(block, "routed_scaling_factor"):  # on the output of the experts, where the router does not apply it
        seen["experts_output"] = seen["experts_output"] * block.routed_scaling_factor
    seen["hidden_states"] = hidden_states
    return {name: tensor.detach().clone().contiguous() for name, tensor in seen.items()}


def record_weighted_shared(block, hidden_states):
    """The experts with those that every token goes to after them: ids and weights of both are inputs of the layer."""
    with torch.no_grad():
        _, weights, ids, gammas = block.gate(hidden_states)
        output = block(hidden_states.unsqueeze(0))[0]
    every = torch.arange(gammas.shape[-1]) + block.gate.num_experts
    ids = torch.cat([ids, every.expand(NUM_TOKENS, -1)], dim=1).to(torch.int32)
    return {"hidden_states": hidden_states, "topk_ids": ids.contiguous(), "topk_weights": torch.cat([weights, gammas], dim=1).float(),
            "block_output": output.contiguous()}


def record_sorted(block, hidden_states):
    """A block whose experts are given rows that are sorted already."""
    with torch.no_grad():
        logits = block.router(hidden_states)[-1]
        chosen, ids = logits.topk(block.router.top_k, dim=1)
        output = block(hidden_states.unsqueeze(0))
    return {"hidden_states": hidden_states, "router_logits": logits.to(hidden_states.dtype), "topk_ids": ids.to(torch.int32),
            "topk_weights": torch.softmax(chosen, dim=1), "block_output": output[0].contiguous()}


def record_experts(block, hidden_states):
    """The experts alone, with the ids and weights of a router that reads other rows and is none of the layer's rules."""
    with torch.no_grad():
        _, weights, ids = block.router(torch.randn(hidden_states.shape).to(hidden_states.dtype))
        output = block.experts(hidden_states, ids, weights)
    return {"hidden_states": hidden_states, "topk_ids": ids.to(torch.int32).contiguous(), "topk_weights": weights.float().contiguous(),
            "experts_output": output.clone().contiguous(), "block_output": output.contiguous()}


# Whose blocks are recorded in another way.
RECORD = {"diffusion_gemma_text": record_experts, "gemma4_text": record_experts, "inkling_text": record_weighted_shared,
          "jetmoe": record_sorted}


def make(family, out_dir):
    torch.manual_seed(sum(family.encode()))
    config = AutoConfig.for_model(CODE_OF.get(family, family), **{**BASE, **FAMILIES[family]}, dtype="bfloat16")
    config._experts_implementation = "eager"
    if family not in WRAPPED:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    else:
        importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
        try:
            model = AutoModel.from_config(config, dtype=torch.bfloat16).eval()
        except ValueError:
            model = text_model(config)._from_config(config, dtype=torch.bfloat16).eval()
    name, block = find_block(model)
    randomize(block)
    parent = model.get_submodule(name.rpartition(".")[0])
    beside = next((getattr(parent, n) for n in ("shared_mlp", "shared_experts") if hasattr(parent, n)), None)
    if beside is not None:
        randomize(beside)
    if hasattr(block, "post_mlp_layernorm"):
        block.post_mlp_layernorm = torch.nn.Identity()  # a norm of the block's output is not part of the layer
    hidden_states = torch.randn(NUM_TOKENS, config.hidden_size).to(torch.bfloat16)
    own = RECORD.get(family)
    golden = own(block, hidden_states) if own else record(block, beside, hidden_states)
    for tensor_name in NOT_RECORDED.get(family, ()):
        del golden[tensor_name]
    folder = os.path.join(out_dir, family)
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        with open(os.path.join(saved, "config.json"), encoding="utf-8") as file:
            text = json.load(file)
        text["model_type"] = family
        tensors = load_file(os.path.join(saved, "model.safetensors"))
    if family in WRAPPED:
        prefix, wrapper, form = WRAPPED[family]
        tensors = publish(tensors, prefix, form)
        outer = {"model_type": wrapper, "text_config": text}
        text = {"model_type": wrapper, "thinker_config": outer} if wrapper == "qwen3_omni_moe" else outer if wrapper else text
    before = {n for n, _ in model.named_parameters()} | {n for n, _ in model.named_buffers()}
    inside = tuple(f".{part}." for part in ("mlp", "ffn", "block_sparse_moe", "feed_forward", "moe", "mixer", "shared_mlp", "share_expert",
                                            "gate", "experts", "shared_experts"))
    kept = {n: t.contiguous() for n, t in tensors.items() if any(part in n for part in inside)}
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(text, file, indent=2, sort_keys=True)
        file.write("\n")
    save_file(kept, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    save_file(golden, os.path.join(folder, "golden.safetensors"))
    print(f"{family}: block {name} of {len(before)} tensors; kept:")
    for tensor_name in sorted(kept):
        if "experts." not in tensor_name or ".experts.0." in tensor_name or "experts.g" in tensor_name or "shared" in tensor_name:
            print("   ", tensor_name, list(kept[tensor_name].shape), str(kept[tensor_name].dtype)[6:])
    print("   ", {n: (list(t.shape), str(t.dtype)[6:]) for n, t in golden.items()})


# Members of a configuration that say that there are experts.
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def compare(table):
    """Every configuration class with a number of experts has a row, and so has one of each folder whose model has a class of experts or a
    router; a row that runs has a golden layer here, or was recorded before."""
    with open(table, encoding="utf-8") as file:
        text = file.read()
    known = set(re.findall(r'\.(?:model_type|wrapper) = "([^"]+)"', text))
    refused = set(re.findall(r'\.model_type = "([^"]+)",\n(?:    \.wrapper[^\n]*\n)?    \.refusal', text))
    seen, missing = set(), set()
    for path in sorted(pathlib.Path(transformers.__file__).parent.glob("models/*/configuration_*.py")):
        for source in re.split(r"\nclass ", path.read_text(encoding="utf-8"))[1:]:
            model_type = re.search(r'^    model_type = "([^"]+)"', source, re.MULTILINE)
            if model_type and any(re.search(rf"^    {key}\b", source, re.MULTILINE) for key in EXPERT_KEYS):
                seen.add(model_type.group(1))
    missing = seen - known
    for path in sorted(pathlib.Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        if re.search(r"^class \w*(Experts|MoE|Moe\w*Block|MoeMLP|TopKRouter|TopkRouter|ExpertGLU)\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            types = {t for c in path.parent.glob("configuration_*.py")
                     for t in re.findall(r'^    model_type = "([^"]+)"', c.read_text(encoding="utf-8"), re.MULTILINE)}
            missing |= set() if types & known else {path.parent.name}
    golden = pathlib.Path(__file__).parent.parent / "data" / "golden"
    untested = {name for name in set(re.findall(r'\.model_type = "([^"]+)"', text)) - refused if not (golden / name).is_dir()}
    print(f"{len(seen)} model types with experts, {len(seen & refused)} of them refused by a sentence")
    if missing or untested:
        raise SystemExit(f"no row: {', '.join(sorted(missing)) or 'none'}; no golden layer: {', '.join(sorted(untested)) or 'none'}")


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    if sys.argv[1] == "--compare":
        return compare(sys.argv[2])
    print("transformers", transformers.__version__, "torch", torch.__version__)
    failed = []
    for family in sys.argv[2:] or sorted(FAMILIES):
        try:
            make(family, sys.argv[1])
        except Exception as error:  # a family that the installed library makes differently is named, the others go on
            failed.append(family)
            print(f"{family}: {type(error).__name__}: {error}", file=sys.stderr)
    if failed:
        raise SystemExit("not made: " + ", ".join(failed))


if __name__ == "__main__":
    main()
