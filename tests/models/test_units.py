from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from in_turn import in_turn
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from selfprune.errors import ModelError
from selfprune.models.units import find_blocks, list_units, n_parameters, n_row_groups, token_share, weight_view

ATTENTION = {"self_attn.q_proj": 32 * 32, "self_attn.k_proj": 16 * 32, "self_attn.v_proj": 16 * 32, "self_attn.o_proj": 32 * 32}
GATED = ATTENTION | {"mlp.gate_proj": 48 * 32, "mlp.up_proj": 48 * 32, "mlp.down_proj": 32 * 48}
KINDS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"), GATED),
    "phi3": {"self_attn.qkv_proj": 64 * 32, "self_attn.o_proj": 32 * 32, "mlp.gate_up_proj": 96 * 32, "mlp.down_proj": 32 * 48},
    "opt": {f"self_attn.{p}_proj": 32 * 32 for p in ("q", "k", "v", "out")} | {"fc1": 48 * 32, "fc2": 32 * 48},
    "gpt_neox": {
        "attention.query_key_value": 96 * 32,
        "attention.dense": 32 * 32,
        "mlp.dense_h_to_4h": 48 * 32,
        "mlp.dense_4h_to_h": 32 * 48,
    },
    "gpt2": {"attn.c_attn": 96 * 32, "attn.c_proj": 32 * 32, "mlp.c_fc": 128 * 32, "mlp.c_proj": 32 * 128},
    "falcon": {
        "self_attention.query_key_value": 48 * 32,
        "self_attention.dense": 32 * 32,
        "mlp.dense_h_to_4h": 128 * 32,
        "mlp.dense_4h_to_h": 32 * 128,
    },
    "mixtral": ATTENTION | {"mlp.experts.gate_up_proj": 4 * 96 * 32, "mlp.experts.down_proj": 4 * 32 * 48},
    "qwen2_moe": ATTENTION
    | {"mlp.experts.gate_up_proj": 4 * 48 * 32, "mlp.experts.down_proj": 4 * 32 * 24}
    | {f"mlp.shared_expert.{p}_proj": 40 * 32 for p in ("gate", "up", "down")},
    "qwen3_moe": ATTENTION | {"mlp.experts.gate_up_proj": 4 * 48 * 32, "mlp.experts.down_proj": 4 * 32 * 24},
}
BLOCKS = {"opt": "model.decoder.layers", "gpt_neox": "gpt_neox.layers", "gpt2": "transformer.h", "falcon": "transformer.h"}
TOKENS_NT = torch.arange(24).view(2, 12)


@pytest.fixture
def family(any_family):
    """Every family, not one of each layout alone."""
    return any_family


def test_units_have_exact_kinds_and_sizes_in_every_block(family, make_tiny_model):
    units = list_units(make_tiny_model(family))
    for block in (0, 1):
        assert {unit.kind: unit.n_weights for unit in units if unit.block == block} == KINDS[family]
    assert len(units) == 2 * len(KINDS[family])


def test_unit_names_are_paths_and_units_lie_in_block_order(family, make_tiny_model):
    units = list_units(make_tiny_model(family))
    assert [unit.name for unit in units] == [f"{BLOCKS.get(family, 'model.layers')}.{unit.block}.{unit.kind}" for unit in units]
    assert [unit.block for unit in units] == sorted(unit.block for unit in units)


def test_changes_of_a_weight_view_reach_the_model(family, make_tiny_model):
    model = make_tiny_model(family)
    before = model(input_ids=TOKENS_NT).logits
    for unit in list_units(model):
        weight_OI = weight_view(model, unit)
        assert weight_OI.numel() == unit.n_items
        weight_OI.zero_()
    unit_names = tuple(unit.name for unit in list_units(model))
    for name, parameter in model.named_parameters():
        if name.endswith(("proj.weight", "dense.weight")) and name.startswith(unit_names):
            assert not parameter.any(), name
    assert not torch.equal(model(input_ids=TOKENS_NT).logits, before)


def test_a_weight_view_has_outputs_as_rows(family, make_tiny_model):
    model = make_tiny_model(family)
    seen = {}
    units = {unit.name: unit for unit in list_units(model)}
    for name, module in model.named_modules():
        if name in units and isinstance(module, nn.Linear | Conv1D):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: seen.update({name: (module, inputs[0], output.clone())})
            )
    model(input_ids=TOKENS_NT)
    assert seen.keys() == {name for name in units if ".experts." not in name}
    for name, (module, hidden_NTI, output_NTO) in seen.items():
        expected = hidden_NTI @ weight_view(model, units[name]).T
        torch.testing.assert_close(output_NTO, expected if module.bias is None else expected + module.bias)


@in_turn("moe", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_fused_experts_are_one_unit_with_a_row_group_per_expert(moe, make_tiny_model):
    model = make_tiny_model(moe)
    units = [unit for unit in list_units(model) if ".experts." in unit.name]
    assert len(units) == 4
    for unit in units:
        weight_EOI = model.get_parameter(unit.name)
        assert n_row_groups(model, unit) == 4
        assert torch.equal(weight_view(model, unit).view(4, -1, weight_EOI.shape[2])[3], weight_EOI[3])


def test_a_linear_layer_is_one_row_group(make_tiny_model):
    model = make_tiny_model("gpt2")
    assert {n_row_groups(model, unit) for unit in list_units(model)} == {1}


@in_turn("moe", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_a_router_that_is_a_linear_layer_is_no_unit(moe, make_tiny_model):
    model = make_tiny_model(moe)
    for block in find_blocks(model)[1]:
        block.mlp.gate = nn.Linear(32, 4)
    assert {unit.kind for unit in list_units(model)} == KINDS[moe].keys()


def test_experts_in_a_list_are_units_and_their_router_is_not(make_tiny_model):
    model = make_tiny_model("llama")
    for block in find_blocks(model)[1]:
        block.mlp.experts = nn.ModuleList([nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 32)) for _ in range(5)])
        block.mlp.router = nn.Linear(32, 5)
    added = {f"mlp.experts.{expert}.{layer}" for expert in range(5) for layer in range(2)}
    assert {unit.kind for unit in list_units(model)} == KINDS["llama"].keys() | added


@in_turn("moe", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_fused_experts_see_the_share_of_tokens_that_is_sent_to_them(moe, make_tiny_model):
    model = make_tiny_model(moe, num_experts_per_tok=3)
    shares = {unit.kind: token_share(model, unit) for unit in list_units(model)}
    assert {kind for kind, share in shares.items() if share == Fraction(3, 4)} == {k for k in KINDS[moe] if ".experts." in k}
    assert set(shares.values()) == {Fraction(3, 4), Fraction(1)}


def test_experts_in_a_list_share_the_tokens_and_a_dense_model_shares_none(make_tiny_model):
    model = make_tiny_model("llama")
    for block in find_blocks(model)[1]:
        block.mlp.experts = nn.ModuleList([nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 32)) for _ in range(5)])
    model.config.num_experts_per_tok = 2
    for unit in list_units(model):
        assert token_share(model, unit) == (Fraction(2, 5) if ".experts." in unit.name else 1)


def test_experts_without_a_number_per_token_are_refused(make_tiny_model):
    model = make_tiny_model("mixtral")
    *_, unit = list_units(model)
    model.config = SimpleNamespace(get_text_config=SimpleNamespace)
    with pytest.raises(ModelError, match=r"share of tokens .* is unknown: expected .* as one of num_experts_per_tok, "):
        token_share(model, unit)


def test_tied_parameters_count_once(make_tiny_model):
    tied, untied = (make_tiny_model("llama", tie_word_embeddings=is_tied) for is_tied in (True, False))
    assert n_parameters(untied) - n_parameters(tied) == untied.lm_head.weight.numel()


def test_the_longer_list_of_a_vision_tower_does_not_win(make_tiny_model):
    text = make_tiny_model("gemma3_text").config.to_dict()
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert max(len(m) for m in model.modules() if isinstance(m, nn.ModuleList)) == 5
    assert find_blocks(model)[0] == "model.language_model.layers"
    assert {unit.kind: unit.n_weights for unit in list_units(model)} == GATED


def test_blocks_of_several_classes_are_refused_with_what_was_found(make_tiny_model):
    model = make_tiny_model("jamba", num_experts=4, use_mamba_kernels=False, attn_layer_period=2, attn_layer_offset=1)
    with pytest.raises(ModelError, match=r"found model\.layers: 2 of \['JambaAttentionDecoderLayer', 'JambaMambaDecoderLayer'\]"):
        list_units(model)


def test_a_weight_shared_between_blocks_is_refused(make_tiny_model):
    model = make_tiny_model("llama")
    first, second = find_blocks(model)[1]
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj is shared between blocks"):
        list_units(model)
