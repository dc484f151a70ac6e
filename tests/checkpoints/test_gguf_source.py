"""GGUF files as models: written here by the `gguf` package as llama.cpp's converter writes them, and read as any other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

import selfprune.embedded
from selfprune.checkpoints.gguf_source import dequantised
from selfprune.errors import ModelError
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig

gguf = pytest.importorskip("gguf")
EMBEDDED = Path(selfprune.embedded.__file__).parent / "weights"
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def turned(weight, n_heads):
    """The rows of a head in the order in which llama.cpp's RoPE turns neighbours."""
    return weight.reshape(n_heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def stored_name(name):
    if name.startswith("model.layers."):
        _, _, block, rest = name.split(".", 3)
        return f"blk.{block}.{NAMES[rest.removesuffix('.weight')]}.weight"
    return f"{OUTSIDE[name.removesuffix('.weight')]}.weight"


@pytest.fixture
def written(make_tiny_model, tmp_path, monkeypatch):
    """Writes a tiny Llama with the embedded tokenizer as a GGUF file of a kind, and gives both."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))

    def write(kind):
        tokenizer = json.loads((EMBEDDED / "tokenizer.json").read_text())["model"]
        tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
        model = make_tiny_model(
            "llama", vocab_size=len(tokens), hidden_size=64, head_dim=16, intermediate_size=96, tie_word_embeddings=False
        )
        config, path = model.config, tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in tokenizer["merges"]])
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for name, weight in model.state_dict().items():
            content = weight.float().numpy()
            if (part := name.split(".")[-2]) in heads:
                content = turned(content, heads[part])
            own = gguf.GGMLQuantizationType[kind if content.ndim > 1 and ".layers." in name else "F32"]
            content = np.ascontiguousarray(content)
            writer.add_tensor(stored_name(name), gguf.quants.quantize(content, own), raw_dtype=own)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return model, path

    return write


@torch.no_grad()
@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 0.0), ("Q8_0", 0.02)])
def test_a_gguf_file_is_a_model_as_any_other(kind, tolerance, written, tmp_path):
    model, path = written(kind)
    loaded = load_model(ModelConfig(str(path), device="cpu"))
    for name, weight in model.named_parameters():
        assert torch.allclose(
            loaded.model.get_parameter(name).float(), weight, rtol=0, atol=tolerance * float(weight.abs().max())
        ), name
    assert loaded.tokenizer.encode("The home of Ada") == load_model(ModelConfig("embedded", device="cpu")).tokenizer.encode(
        "The home of Ada"
    )
    (doubt,) = loaded.doubts or ("",)
    assert ("Q8_0 matrices" in doubt or "Q8_0," in doubt) == (kind == "Q8_0")
    assert loaded.source is not None
    assert loaded.source.parent == tmp_path / "cache" / "selfprune"
    AutoModelForCausalLM.from_pretrained(loaded.source).save_pretrained(tmp_path / "again")


def test_a_file_is_read_once_and_anew_when_it_changed(written):
    _, path = written("F32")
    folder = dequantised(path)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert dequantised(path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    path.touch()
    assert dequantised(path) != folder


@pytest.mark.parametrize(("content", "said"), [(b"no", "should be a GGUF file"), (b"", "should be a GGUF file")])
def test_what_is_no_gguf_file_is_told(content, said, tmp_path):
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        load_model(ModelConfig(str(tmp_path / "a.gguf"), device="cpu"))


def test_a_full_disk_is_told_before_it_is_written(written, monkeypatch):
    _, path = written("F32")
    monkeypatch.setattr("selfprune.checkpoints.gguf_source.free_bytes", lambda path: 1000)
    with pytest.raises(ModelError, match=r"once it is dequantised, and 0\.00 GB are free; free some of it, or let HF_HOME"):
        load_model(ModelConfig(str(path), device="cpu"))
