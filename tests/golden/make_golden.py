#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_golden.py OUT_DIR [FAMILY...]

Makes golden layers in the format of tests/data/golden with transformers and torch (both from PyPI; any machine, no GPU): a small random
model of each family, layer 0's MoE tensors under their published names, and what the library's own block computes for 74 tokens. The
small results are committed; this script says how they came to be and makes them for a family that is added.
"""

import json
import os
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

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
# Sizes are small and awkward on purpose; what is not named is the family's default.
FAMILIES = {
    "afmoe": {"num_experts": 20, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "num_shared_experts": 1, "num_dense_layers": 0},
    "cohere2_moe": {"num_experts": 20, "num_experts_per_tok": 3, "first_k_dense_replace": 0},
    "deepseek_v2": {**MLA, "n_routed_experts": 24, "num_experts_per_tok": 5, "moe_intermediate_size": 24, "n_shared_experts": 2,
                    "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0,
                    "norm_topk_prob": False},
    "dots1": {"n_routed_experts": 24, "num_experts_per_tok": 5, "moe_intermediate_size": 24, "n_shared_experts": 2, "n_group": 1,
              "topk_group": 1, "first_k_dense_replace": 0, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
    "ernie4_5_moe": {"moe_num_experts": 20, "moe_k": 5, "moe_intermediate_size": 24, "moe_num_shared_experts": 2,
                     "moe_layer_start_index": 0, "moe_layer_end_index": 0},
    "exaone_moe": {"num_experts": 24, "num_experts_per_tok": 5, "moe_intermediate_size": 24, "num_shared_experts": 1,
                   "first_k_dense_replace": 0, "routed_scaling_factor": 2.5},
    "flex_olmo": {"num_experts": 7, "num_experts_per_tok": 5},
    "glm4_moe": {"n_routed_experts": 24, "num_experts_per_tok": 5, "moe_intermediate_size": 24, "n_shared_experts": 1, "n_group": 1,
                 "topk_group": 1, "first_k_dense_replace": 0, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
    "glm4_moe_lite": {**MLA, "n_routed_experts": 24, "num_experts_per_tok": 4, "moe_intermediate_size": 24, "n_shared_experts": 1,
                      "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.8, "mlp_layer_types": ["sparse"]},
    "granitemoe": {"num_local_experts": 20, "num_experts_per_tok": 6},
    "granitemoehybrid": {"num_local_experts": 20, "num_experts_per_tok": 6, "shared_intermediate_size": 88,
                         "layer_types": ["attention"], "mamba_n_heads": 8, "mamba_d_head": 18},
    "granitemoeshared": {"num_local_experts": 20, "num_experts_per_tok": 6, "shared_intermediate_size": 88},
    "hunyuan_v1_moe": {"num_experts": 16, "moe_topk": 3},
    "jamba": {"num_experts": 8, "num_experts_per_tok": 2, "expert_layer_period": 1, "expert_layer_offset": 0, "attn_layer_period": 1,
              "attn_layer_offset": 0, "use_mamba_kernels": False},
    "kimi_k2": {**MLA, "n_routed_experts": 24, "num_experts_per_tok": 5, "moe_intermediate_size": 24, "n_shared_experts": 1, "n_group": 1,
                "topk_group": 1, "routed_scaling_factor": 2.827, "norm_topk_prob": True},
    "lfm2_moe": {"num_experts": 20, "num_experts_per_tok": 4, "moe_intermediate_size": 24, "num_dense_layers": 0,
                 "layer_types": ["full_attention"], "routed_scaling_factor": 1.5, "norm_topk_prob": True},
    "minimax": {"num_local_experts": 8, "num_experts_per_tok": 2, "layer_types": ["full_attention"]},
    "minimax_m2": {"num_local_experts": 24, "num_experts_per_tok": 5},
    "nemotron_h": {"n_routed_experts": 24, "num_experts_per_tok": 6, "moe_intermediate_size": 24, "n_shared_experts": 1,
                   "moe_shared_expert_intermediate_size": 72, "hybrid_override_pattern": "E", "layers_block_type": ["moe"],
                   "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
    "phimoe": {"num_local_experts": 16, "num_experts_per_tok": 2, "router_jitter_noise": 0.01},
    "qwen3_next": {"num_experts": 24, "num_experts_per_tok": 5, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 88,
                   "layer_types": ["full_attention"], "norm_topk_prob": True},
    "solar_open": {"n_routed_experts": 24, "num_experts_per_tok": 5, "moe_intermediate_size": 24, "n_shared_experts": 1,
                   "first_k_dense_replace": 0, "routed_scaling_factor": 1.0},
}

# Published with the code of another family, under a name of its own.
CODE_OF = {"kimi_k2": "deepseek_v3"}


def find_block(model):
    """The first module that routes to `experts`, and its name."""
    for name, module in model.named_modules():
        if hasattr(module, "experts") and not name.endswith("experts"):
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
    seen["hidden_states"] = hidden_states
    return {name: tensor.detach().clone().contiguous() for name, tensor in seen.items()}


def make(family, out_dir):
    torch.manual_seed(sum(family.encode()))
    config = AutoConfig.for_model(CODE_OF.get(family, family), **{**BASE, **FAMILIES[family]}, dtype="bfloat16")
    config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    name, block = find_block(model)
    randomize(block)
    beside = getattr(model.get_submodule(name.rpartition(".")[0]), "shared_mlp", None)
    if beside is not None:
        randomize(beside)
    golden = record(block, beside, torch.randn(NUM_TOKENS, config.hidden_size).to(torch.bfloat16))
    folder = os.path.join(out_dir, family)
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        with open(os.path.join(saved, "config.json"), encoding="utf-8") as file:
            text = json.load(file)
        text["model_type"] = family
        tensors = load_file(os.path.join(saved, "model.safetensors"))
    before = {n for n, _ in model.named_parameters()} | {n for n, _ in model.named_buffers()}
    inside = tuple(f".{part}." for part in ("mlp", "block_sparse_moe", "feed_forward", "moe", "mixer", "shared_mlp"))
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


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
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
