import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from selfprune.errors import ModelError
from selfprune.models.load_failures import without_load_report
from selfprune.models.loading import load_model
from selfprune.models.model_config import DType, ModelConfig

LOADER = "transformers.modeling_utils"
GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    return Path(shutil.copytree(tiny_model_folder("llama"), tmp_path / "model"))


@pytest.fixture
def transformers_said():
    """What transformers logs while it loads."""
    said = []

    class Kept(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    handler = Kept()
    logging.getLogger(LOADER).addHandler(handler)
    yield said
    logging.getLogger(LOADER).removeHandler(handler)


def test_tensors_that_the_model_does_not_use_are_told_by_name_and_count(folder, make_tiny_model):
    make_tiny_model("llama", num_hidden_layers=5).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    [doubt] = load_model(ModelConfig(str(folder), device="cpu")).doubts
    assert "holds 27 tensors that LlamaForCausalLM does not use, such as model.layers.2.input_layernorm.weight, " in doubt
    assert "fewer blocks (num_hidden_layers)" in doubt


@pytest.mark.parametrize("option", ["num_nextn_predict_layers", "num_mtp_layers"])
def test_only_the_blocks_that_predict_further_tokens_are_set_apart(option, folder, make_tiny_model):
    make_tiny_model("llama", num_hidden_layers=4).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2, option: 2}))
    assert load_model(ModelConfig(str(folder), device="cpu")).doubts == ()
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2, option: 1}))
    [doubt] = load_model(ModelConfig(str(folder), device="cpu")).doubts
    assert "holds 9 tensors that LlamaForCausalLM does not use, such as model.layers.3.input_layernorm.weight, " in doubt


def test_tensors_that_are_called_multi_token_prediction_are_set_apart(folder):
    tensors = load_file(folder / "model.safetensors")
    names = ("mtp.fc.weight", "model.mtp.layers.0.weight", "model.mtp_block.1.bias", "mtp_layers.0.norm", "mtp.0", "mtp")
    save_file(tensors | {name: torch.ones(2) for name in names}, folder / "model.safetensors", {"format": "pt"})
    assert load_model(ModelConfig(str(folder), device="cpu")).doubts == ()
    save_file(tensors | {"model.smtp.weight": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
    [doubt] = load_model(ModelConfig(str(folder), device="cpu")).doubts
    assert "holds 1 tensors" in doubt


def test_what_our_own_words_tell_of_a_checkpoint_is_not_told_by_the_library_too(folder, make_tiny_model, transformers_said):
    make_tiny_model("llama", num_hidden_layers=5).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    load_model(ModelConfig(str(folder), device="cpu"))
    assert transformers_said == []
    AutoModelForCausalLM.from_pretrained(folder)
    assert ["LOAD REPORT" in said for said in transformers_said] == [True]


def test_what_the_library_tells_of_a_load_that_fails_is_told(transformers_said):
    def log_state_dict_report():
        logging.getLogger(LOADER).warning("which tensors")

    def load():
        log_state_dict_report()
        logging.getLogger(LOADER).warning("something else")
        raise RuntimeError("see above")

    with pytest.raises(RuntimeError), without_load_report():
        load()
    assert transformers_said == ["something else", "which tensors"]


def test_a_whole_checkpoint_raises_no_doubt(folder):
    assert load_model(ModelConfig(str(folder), device="cpu")).doubts == ()


def test_weights_that_overflow_the_dtype_asked_for_are_told_from_broken_ones(folder, make_tiny_model):
    model = make_tiny_model("llama")
    gate = dict(model.named_parameters())[GATE]
    gate[0, 0] = 1e5
    model.save_pretrained(folder)
    said = (
        rf"{GATE} .* is sound in the checkpoint, but goes up to 1e\+05, and float16 ends at 65504; give model\.dtype=BFLOAT16 or"
    )
    with pytest.raises(ModelError, match=said):
        load_model(ModelConfig(str(folder), device="cpu", dtype=DType.FLOAT16))
    assert load_model(ModelConfig(str(folder), device="cpu", dtype=DType.BFLOAT16)).doubts == ()
    gate[0, 0] = torch.inf
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=rf"{GATE} .* holds NaN or infinite numbers; the checkpoint is broken"):
        load_model(ModelConfig(str(folder), device="cpu", dtype=DType.FLOAT16))


def test_sound_weights_whose_products_overflow_the_dtype_are_told_as_such(folder, make_tiny_model):
    model = make_tiny_model("llama")
    model.lm_head.weight.fill_(3e4)
    model.save_pretrained(folder)
    with pytest.raises(
        ModelError, match=r"what it computes on the way overflows, since float16 ends at 65504; give model\.dtype="
    ):
        load_model(ModelConfig(str(folder), device="cpu", dtype=DType.FLOAT16))
