import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoConfig, LlamaModel

from selfprune.errors import ConfigError, ModelError
from selfprune.models import loading
from selfprune.models.loading import load_model, max_positions, preflight_memory
from selfprune.models.model_config import DType, ModelConfig, Placement
from selfprune.models.units import find_blocks, list_units, weight_view

TOKENS_NT = torch.arange(24).view(2, 12)


@pytest.fixture
def family(any_family):
    """Every family, not one of each layout alone."""
    return any_family


def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "model"))


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_loads_without_any_network(family, make_tiny_model, tiny_model_folder, no_network):
    loaded = load_model(ModelConfig(str(tiny_model_folder(family)), device="cpu"))
    torch.testing.assert_close(loaded.model(input_ids=TOKENS_NT).logits, make_tiny_model(family)(input_ids=TOKENS_NT).logits)
    assert loaded.units == list_units(loaded.model)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert len(loaded.blocks) == 2
    assert loaded.tokenizer.decode(loaded.tokenizer("the red foxes")["input_ids"]) == "the red foxes"
    assert max_positions(loaded.model) == 64
    assert no_network == []


@pytest.mark.parametrize(
    ("dtype", "expected"), [(DType.BFLOAT16, torch.bfloat16), (DType.FLOAT16, torch.float16), (DType.AUTO, torch.float32)]
)
def test_weights_have_the_dtype_that_was_asked_for(dtype, expected, tiny_model_folder):
    loaded = load_model(ModelConfig(str(tiny_model_folder("llama")), dtype, device="cpu"))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {expected}


def test_the_embedded_model_loads_without_any_network(no_network):
    loaded = load_model(ModelConfig(device="cpu"))
    assert len(loaded.blocks) >= 12
    assert len(loaded.units) == 7 * len(loaded.blocks)
    assert no_network == []


def test_the_books_model_loads():
    folder = Path(__file__).parents[3] / "shared/models/books-10m"
    if not folder.is_dir():
        pytest.skip("the books model is not here")
    loaded = load_model(ModelConfig(str(folder), device="cpu"))
    assert sum(unit.n_weights for unit in loaded.units) < preflight_memory(ModelConfig(str(folder))).n_parameters


def test_preflight_counts_tied_parameters_once_and_adds_the_callers_bytes(tiny_model_folder, make_tiny_model):
    config = ModelConfig(str(tiny_model_folder("gpt2")), DType.BFLOAT16, device="cpu")
    model = make_tiny_model("gpt2")
    n_parameters = sum(parameter.numel() for name, parameter in model.state_dict().items() if name != "lm_head.weight")
    preflight = preflight_memory(config, lambda text_config, n, size: n * (size + 2))
    assert (preflight.n_parameters, preflight.needed_bytes) == (n_parameters, 6 * n_parameters)
    assert preflight.available_bytes > preflight.needed_bytes


def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(tiny_model_folder, tmp_path):
    folder = copied(tiny_model_folder("llama"), tmp_path)
    (folder / "model.safetensors").unlink()
    edit_config(folder, hidden_size=2**20, intermediate_size=2**20)
    with pytest.raises(
        ModelError,
        match=r"does not fit: .* parameters at 4 bytes need [\d.]+ GB, but cpu has [\d.]+ GB free; give [^,]+, [^,]+, or prune",
    ):
        load_model(ModelConfig(str(folder), device="cpu"))


def test_the_callers_bytes_can_make_a_model_too_large(tiny_model_folder):
    with pytest.raises(ModelError, match=r"and [\d.]+ GB more for the run, need .* fewer windows or processes \(data.n_search"):
        preflight_memory(ModelConfig(str(tiny_model_folder("llama")), device="cpu"), lambda *_: 10**15)


def test_from_disk_the_largest_block_and_what_lies_outside_the_blocks_must_fit(tiny_model_folder, make_tiny_model):
    model = make_tiny_model("gpt2")
    n_at_once = {placement: preflight_of("gpt2", tiny_model_folder, placement).n_parameters for placement in Placement}
    n_block = sum(parameter.numel() for parameter in model.transformer.h[0].parameters())
    n_all = sum(parameter.numel() for parameter in model.parameters())
    assert n_at_once == {Placement.WHOLE: n_all, Placement.STREAM: n_all - n_block, Placement.SPREAD: 0}


def preflight_of(family, tiny_model_folder, placement):
    return preflight_memory(ModelConfig(str(tiny_model_folder(family)), device="cpu", placement=placement))


def test_a_model_larger_than_memory_is_refused_whole_and_passes_from_disk(tiny_model_folder, monkeypatch):
    whole = preflight_of("llama", tiny_model_folder, Placement.WHOLE)
    monkeypatch.setattr("selfprune.models.memory_check._free_memory_bytes", lambda: whole.needed_bytes - 1)
    with pytest.raises(
        ModelError, match=r"does not fit: .*prune it from disk, .*`python -m selfprune\.prune model\.placement=STREAM`"
    ):
        load_model(ModelConfig(str(tiny_model_folder("llama")), device="cpu"))
    loaded = load_model(ModelConfig(str(tiny_model_folder("llama")), device="cpu", placement=Placement.STREAM))
    assert len(loaded.blocks) == 2


def test_the_blocks_are_searched_once_however_many_prefixes_are_asked_for(tiny_model_folder, monkeypatch):
    loaded = load_model(ModelConfig(str(tiny_model_folder("opt")), device="cpu"))
    searched = []
    monkeypatch.setattr(loading, "find_blocks", lambda model: searched.append(model) or find_blocks(model))
    assert [loaded.block_prefix(i) for i in range(2)] == ["model.decoder.layers.0.", "model.decoder.layers.1."]
    assert len(searched) == 1


@pytest.mark.parametrize("placement", [Placement.STREAM, Placement.SPREAD])
def test_a_model_that_is_not_whole_on_its_device_gives_the_same_logits(
    placement, family, tiny_model_folder, make_tiny_model, no_network, tmp_path
):
    config = ModelConfig(str(tiny_model_folder(family)), device="cpu", placement=placement)
    loaded = load_model(config, scratch=tmp_path / "scratch")
    in_blocks = {loaded.block_prefix(index) for index in range(len(loaded.blocks))}
    for name, parameter in loaded.model.named_parameters():
        assert parameter.is_meta == (placement is Placement.STREAM and any(map(name.startswith, in_blocks))), name
        assert not parameter.requires_grad
    assert not loaded.model.training
    assert loaded.units == list_units(make_tiny_model(family))
    with torch.no_grad():
        logits_NTV = loaded.model(input_ids=TOKENS_NT.to(loaded.device)).logits
    torch.testing.assert_close(logits_NTV.cpu(), make_tiny_model(family)(input_ids=TOKENS_NT).logits)
    assert no_network == []


def test_weights_stay_in_the_checkpoint_where_it_has_their_form_and_need_a_scratch_folder_where_not(tiny_model_folder, tmp_path):
    def stream(family, scratch):
        load_model(ModelConfig(str(tiny_model_folder(family)), device="cpu", placement=Placement.STREAM), scratch)

    stream("llama", tmp_path / "llama")
    assert not list((tmp_path / "llama").glob("*"))
    stream("mixtral", tmp_path / "mixtral")
    assert len(list((tmp_path / "mixtral").glob("*.experts.*.safetensors"))) == 2 * 2
    with pytest.raises(ModelError, match=r"reading the weights of .* failed .*needed to be re-saved"):
        stream("mixtral", None)


@pytest.mark.parametrize("placement", [Placement.STREAM, Placement.SPREAD])
def test_a_broken_checkpoint_is_refused_from_disk_too(placement, tiny_model_folder, make_tiny_model, tmp_path):
    folder = copied(tiny_model_folder("llama"), tmp_path)
    config = ModelConfig(str(folder), device="cpu", placement=placement)
    model = make_tiny_model("llama")
    model.get_input_embeddings().weight[3, 3] = torch.inf
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"model\.embed_tokens\.weight of .* holds NaN or infinite numbers"):
        load_model(config)
    LlamaModel(model.config).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"lacks 1 weights that LlamaForCausalLM needs, such as lm_head.weight"):
        load_model(config)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model/model.safetensors is no whole safetensors file"):
        load_model(config)


def test_a_block_missing_from_a_checkpoint_is_noticed_from_disk(make_tiny_model, tiny_tokenizer, tmp_path):
    make_tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    edit_config(tmp_path, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"lacks 9 weights that LlamaForCausalLM needs, such as model\.layers\.2\."):
        load_model(ModelConfig(str(tmp_path), device="cpu", placement=Placement.STREAM))


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
    cause = "HF_HUB_OFFLINE is set, and the cache" if offline else "the hub does not answer, and the cache"
    assert cause in str(error.value)
    assert ("unset HF_HUB_OFFLINE" in str(error.value)) is offline
    assert bool(no_network) is not offline
    assert "\n" not in str(error.value)


def test_truncated_weights_are_refused(tiny_model_folder, tmp_path):
    folder = copied(tiny_model_folder("llama"), tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model/model.safetensors is no whole safetensors file .* it was cut short"):
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
    with pytest.raises(ModelError, match=r"NaN or infinite logits .*finite, but too large or broken: fetch the checkpoint again"):
        load_model(ModelConfig(str(folder), device="cpu"))


def test_hidden_states_that_are_no_numbers_are_not_taken_for_an_architecture_that_changes_them(
    tiny_model_folder, make_tiny_model, tmp_path
):
    folder = copied(tiny_model_folder("llama"), tmp_path)
    model = make_tiny_model("llama")
    attention = model.model.layers[0].self_attn
    for linear in (attention.v_proj, attention.o_proj):
        linear.weight.mul_(1e38)
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"NaN or infinite logits .*finite, but too large or broken: fetch the checkpoint again"):
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
    for family, message in (("t5", "is an encoder-decoder"), ("vit", "is a vit, for which transformers .* has no causal")):
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


@pytest.mark.skipif(torch.backends.mps.is_available() or torch.xpu.is_available(), reason="needs a machine without either")
@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_a_device_that_torch_knows_but_does_not_see_is_refused(device, tiny_model_folder):
    with pytest.raises(ModelError, match=rf"model\.device={device}, but torch sees no such device here; give model\.device=cpu"):
        load_model(ModelConfig(str(tiny_model_folder("llama")), device=device))
