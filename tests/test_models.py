import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaModel
from transformers.pytorch_utils import Conv1D

from selfprune.errors import ConfigError, ModelError
from selfprune.models import DType, ModelConfig, find_blocks, list_units, load_model, n_row_groups, preflight_memory, weight_view

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


def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "model"))


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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


@pytest.mark.parametrize("moe", ["mixtral", "qwen2_moe", "qwen3_moe"])
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


@pytest.mark.parametrize("moe", ["mixtral", "qwen2_moe", "qwen3_moe"])
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


def test_transposed_experts_are_refused_with_their_shapes(make_tiny_model):
    model = make_tiny_model("gpt_oss", num_local_experts=4, num_experts_per_tok=2)
    with pytest.raises(
        ModelError, match=r"model\.layers\.0 \(GptOssDecoderLayer\) is not understood.*gate_up_proj \(4, 32, 96\)"
    ):
        list_units(model)


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


def test_a_folder_loads_without_any_network(family, make_tiny_model, tiny_model_folder, no_network):
    loaded = load_model(ModelConfig(str(tiny_model_folder(family)), device="cpu"))
    torch.testing.assert_close(loaded.model(input_ids=TOKENS_NT).logits, make_tiny_model(family)(input_ids=TOKENS_NT).logits)
    assert loaded.units == list_units(loaded.model)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert len(loaded.blocks) == 2
    assert loaded.tokenizer.decode(loaded.tokenizer("the red foxes")["input_ids"]) == "the red foxes"
    assert loaded.max_positions == 64
    assert no_network == []


@pytest.mark.parametrize(
    ("dtype", "expected"), [(DType.BFLOAT16, torch.bfloat16), (DType.FLOAT16, torch.float16), (DType.AUTO, torch.float32)]
)
def test_weights_have_the_dtype_that_was_asked_for(dtype, expected, tiny_model_folder):
    loaded = load_model(ModelConfig(str(tiny_model_folder("llama")), dtype, device="cpu"))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {expected}


def test_the_embedded_model_loads_without_any_network(no_network):
    if not (Path(__file__).parents[1] / "src/selfprune/embedded/weights/config.json").is_file():
        pytest.skip("the embedded model is not trained yet")
    loaded = load_model(ModelConfig(device="cpu"))
    assert len(loaded.blocks) >= 12
    assert len(loaded.units) == 7 * len(loaded.blocks)
    assert no_network == []


def test_the_books_model_loads():
    folder = Path(__file__).parents[2] / "shared/models/books-10m"
    if not folder.is_dir():
        pytest.skip("the books model is not here")
    loaded = load_model(ModelConfig(str(folder), device="cpu"))
    assert sum(unit.n_weights for unit in loaded.units) < preflight_memory(ModelConfig(str(folder)), 0).n_parameters


def test_preflight_counts_tied_parameters_once_and_adds_the_callers_bytes(tiny_model_folder, make_tiny_model):
    config = ModelConfig(str(tiny_model_folder("gpt2")), DType.BFLOAT16, device="cpu")
    model = make_tiny_model("gpt2")
    n_parameters = sum(parameter.numel() for name, parameter in model.state_dict().items() if name != "lm_head.weight")
    preflight = preflight_memory(config, bytes_per_parameter=4.0)
    assert (preflight.n_parameters, preflight.needed_bytes) == (n_parameters, 6 * n_parameters)
    assert preflight.available_bytes > preflight.needed_bytes


def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(tiny_model_folder, tmp_path):
    folder = copied(tiny_model_folder("llama"), tmp_path)
    (folder / "model.safetensors").unlink()
    edit_config(folder, hidden_size=2**20, intermediate_size=2**20)
    with pytest.raises(
        ModelError, match=r"does not fit: .* need [\d.]+ GB, but cpu has [\d.]+ GB free; give model.dtype=BFLOAT16"
    ):
        load_model(ModelConfig(str(folder), device="cpu"))


def test_the_callers_bytes_can_make_a_model_too_large(tiny_model_folder):
    with pytest.raises(ModelError, match=r"does not fit"):
        preflight_memory(ModelConfig(str(tiny_model_folder("llama")), device="cpu"), bytes_per_parameter=1e12)


@pytest.mark.parametrize("path", ["/no/such/folder", "./no_such_folder", "models/of/mine"])
def test_a_missing_folder_is_named_without_any_network(path, no_network):
    with pytest.raises(
        ModelError, match=rf"model.path={path}: there is no folder .*give the folder of a Hugging Face checkpoint"
    ):
        load_model(ModelConfig(path))
    assert no_network == []


def test_a_file_and_a_folder_without_a_config_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no config.json"):
        load_model(ModelConfig(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"got the file .*give the folder that holds it"):
        load_model(ModelConfig(str(tmp_path / "model.safetensors")))


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_id_without_a_network_fails_at_once_with_a_remedy(offline, no_network, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"download it elsewhere and give model.path=<folder>") as error:
        load_model(ModelConfig("someone/no-such-model"))
    assert time.monotonic() - start < 5
    assert ("unset HF_HUB_OFFLINE" in str(error.value)) is offline
    assert bool(no_network) is not offline
    assert "\n" not in str(error.value)


def test_truncated_weights_are_refused(tiny_model_folder, tmp_path):
    folder = copied(tiny_model_folder("llama"), tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(
        ModelError, match=r"reading the weights of model.path=.* failed .*check that the folder holds a whole checkpoint"
    ):
        load_model(ModelConfig(str(folder), device="cpu"))


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_with_random_ones(tiny_model_folder, make_tiny_model, tmp_path):
    folder = copied(tiny_model_folder("llama"), tmp_path)
    (folder / "model.safetensors").unlink()
    LlamaModel(make_tiny_model("llama").config).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"lacks 1 weights that LlamaForCausalLM needs, such as lm_head.weight"):
        load_model(ModelConfig(str(folder), device="cpu"))


def test_broken_numbers_are_refused(tiny_model_folder, make_tiny_model, tmp_path):
    folder = copied(tiny_model_folder("llama"), tmp_path)
    model = make_tiny_model("llama")
    weight_view(model, list_units(model)[0])[0, 0] = torch.nan
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight of .* holds NaN or infinite numbers"):
        load_model(ModelConfig(str(folder), device="cpu"))


def test_numbers_that_overflow_the_dtype_when_run_are_refused(tiny_model_folder, make_tiny_model, tmp_path):
    folder = copied(tiny_model_folder("opt"), tmp_path)
    model = make_tiny_model("opt")
    model.model.decoder.project_out.weight.fill_(3e38)
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"NaN or infinite logits .*needs model\.dtype=FLOAT32"):
        load_model(ModelConfig(str(folder), device="cpu"))


def test_an_unknown_architecture_is_refused(tiny_model_folder, tmp_path):
    folder = copied(tiny_model_folder("llama"), tmp_path)
    edit_config(folder, model_type="perceptronium")
    with pytest.raises(ModelError, match=r"reading the configuration .*perceptronium"):
        load_model(ModelConfig(str(folder)))


def test_a_bidirectional_model_is_refused(tiny_model_folder):
    with pytest.raises(ModelError, match=r"is not a causal language model"):
        load_model(ModelConfig(str(tiny_model_folder("bert")), device="cpu"))


def test_an_encoder_decoder_and_a_classifier_of_images_are_refused(tmp_path):
    for family, message in (("t5", "is an encoder-decoder"), ("vit", "building the architecture .* failed")):
        AutoConfig.for_model(family).save_pretrained(tmp_path / family)
        with pytest.raises(ModelError, match=message):
            load_model(ModelConfig(str(tmp_path / family)))


def test_a_quantised_checkpoint_is_refused(tiny_model_folder, tmp_path):
    folder = copied(tiny_model_folder("llama"), tmp_path)
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match=r"quantised checkpoint"):
        load_model(ModelConfig(str(folder)))


def test_a_folder_without_a_tokenizer_is_refused(make_tiny_model, tmp_path):
    make_tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"reading the tokenizer"):
        load_model(ModelConfig(str(tmp_path), device="cpu"))


@pytest.mark.parametrize(
    ("changes", "message"), [({"path": " "}, "model.path"), ({"device": "abacus"}, "model.device .*'abacus'")]
)
def test_a_wrong_config_is_refused_at_construction(changes, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_refused(tiny_model_folder):
    with pytest.raises(ModelError, match=r"torch sees no GPU"):
        load_model(ModelConfig(str(tiny_model_folder("llama")), device="cuda"))
