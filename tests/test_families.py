"""Architectures that cannot be pruned are refused in one paragraph that names the trait, before weights are read where it can."""

import re
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from selfprune.errors import ModelError
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig
from selfprune.models.units import list_units

SMALL = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip
MOE = SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
LONGCAT = SMALL | MLA | {
    "ffn_hidden_size": 96, "num_layers": 2, "moe_topk": 2, "n_routed_experts": 4, "zero_expert_num": 2,
    "expert_ffn_hidden_size": 32,
}  # fmt: skip
UNPACKED = "takes more than hidden states from each of its blocks"
ELSEWHERE = "is not understood: .*found more than a tenth of its weights elsewhere: .*experts"
MORE = "of ZayaForCausalLM needs more than hidden states of the blocks before it"
SEVERAL = "the decoder blocks of .* were not found: expected a list of modules of one class"
BEFORE_WEIGHTS = {
    "rwkv": ("rwkv", {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2}, f"RwkvForCausalLM {UNPACKED}"),
    "jetmoe": ("jetmoe", MOE | {"kv_channels": 16}, f"JetMoeDecoderLayer\\) {ELSEWHERE}"),
    "recurrent_gemma": ("recurrent_gemma", SMALL, "RecurrentGemmaDecoderLayer\\) is not understood: .*rg_lru"),
    "jamba": ("jamba", SMALL | {"attn_layer_period": 2, "attn_layer_offset": 1}, SEVERAL),
    "zamba2": ("zamba2", SMALL | {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"]}, SEVERAL),
}  # fmt: skip
GEMMA_3N = SMALL | {
    "num_hidden_layers": 4, "num_kv_shared_layers": 0, "layer_types": ["full_attention"] * 4, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 300, "activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [96] * 4,
}  # fmt: skip
AS_LOADED = {
    "zaya": ("zaya", SMALL | {"num_experts": 4, "num_experts_per_tok": 1}, MORE),
    "longcat_flash": ("longcat_flash", LONGCAT, "LongcatFlashForCausalLM itself fails on 8 tokens .* config.json does not fit"),
    "gemma3n_text": ("gemma3n_text", GEMMA_3N, "one stream of hidden states .*got a tensor of shape \\[4, 2, 8, 64\\]"),
    "xlm": (
        "xlm",
        {"vocab_size": 300, "emb_dim": 64, "n_layers": 2, "n_heads": 4},
        "XLMWithLMHeadModel changes the hidden states between its blocks transformer.attentions.0 and transformer.attentions.1",
    ),
    "prophetnet": (
        "prophetnet",
        {"vocab_size": 300, "hidden_size": 64, "num_decoder_layers": 2, "num_decoder_attention_heads": 4, "decoder_ffn_dim": 96}
        | {"is_decoder": True, "is_encoder_decoder": False, "pad_token_id": 0},
        "should be given one stream of hidden states .*\\[2, 8\\] tokens became \\[2, 24, 64\\]",
    ),
    "xmod": ("xmod", SMALL | {"is_decoder": True}, "XmodForCausalLM itself fails on 8 tokens .*Input language unknown"),
}  # fmt: skip


def check_paragraph(error):
    assert "\n" not in str(error.value)
    assert "cannot prune" in str(error.value)
    assert "check that the folder" not in str(error.value)


@pytest.mark.parametrize("case", BEFORE_WEIGHTS)
def test_an_architecture_is_refused_by_its_trait_before_any_weight_is_read(case, tmp_path):
    family, options, expected = BEFORE_WEIGHTS[case]
    AutoConfig.for_model(family, **options).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=expected) as error:
        load_model(ModelConfig(str(tmp_path), device="cpu"))
    check_paragraph(error)


@pytest.mark.parametrize("case", AS_LOADED)
def test_an_architecture_is_refused_by_its_trait_when_it_has_run(case, tiny_tokenizer, tmp_path):
    family, options, expected = AS_LOADED[case]
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=expected) as error:
        load_model(ModelConfig(str(tmp_path), device="cpu"))
    check_paragraph(error)


def test_a_configuration_without_a_width_is_refused(make_tiny_model, monkeypatch):
    model = make_tiny_model("llama")
    monkeypatch.setattr(type(model.config), "get_text_config", lambda _: SimpleNamespace())
    with pytest.raises(ModelError, match=re.escape("should say how wide its hidden states are, as hidden_size, and does not")):
        list_units(model)


def test_blocks_that_return_lists_are_understood(tiny_tokenizer, tmp_path):
    options = {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("openai-gpt", **options)).eval()
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = load_model(ModelConfig(str(tmp_path), device="cpu"))
    tokens_NT = torch.arange(24).view(2, 12)
    assert torch.equal(loaded.model(input_ids=tokens_NT).logits, model(input_ids=tokens_NT).logits)
    assert len(loaded.units) == 8
