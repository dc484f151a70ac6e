"""A broken checkpoint is refused in one paragraph that names the broken file."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfprune.checkpoints.source import open_source
from selfprune.errors import ModelError
from selfprune.exports.pruned_checkpoint import PrunedCheckpoint
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig, Placement

INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00006.safetensors"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def sharded(make_tiny_model, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    make_tiny_model("llama").save_pretrained(folder, max_shard_size="20KB")
    tiny_tokenizer.save_pretrained(folder)
    assert (folder / SECOND).is_file()
    return folder


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name, n_bytes):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:n_bytes])


def told(**changes):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def mapped(name, file):
    def edit(folder):
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"][name] = file
        (folder / INDEX).write_text(json.dumps(index))

    return edit


def reshaped(folder):
    shard = folder / json.loads((folder / INDEX).read_text())["weight_map"][Q_PROJ]
    save_file(load_file(shard) | {Q_PROJ: torch.zeros(8, 8)}, shard, {"format": "pt"})


def gone(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


BROKEN = {
    "a shard is gone": (gone(SECOND), rf"not whole: {SECOND} is needed, found no such file"),
    "the index names a file that is not there": (mapped("model.norm.weight", "other.safetensors"), "other.safetensors is needed"),
    "the index is no JSON": (written(INDEX, "{"), rf"{INDEX} cannot be read back: it is no JSON"),
    "the index is a list": (written(INDEX, "[1]"), rf"{INDEX} cannot be read back: it must be an object"),
    "the index has no map": (written(INDEX, "{}"), rf"{INDEX} cannot be read back: weight_map is missing"),
    "the index maps to a number": (mapped("model.norm.weight", 5), rf"{INDEX} cannot be read back: .*must be a text, got 5"),
    "a header is cut short": (cut(SECOND, 100), rf"{SECOND} is no whole safetensors file .*cut short"),
    "a shard is empty": (cut(SECOND, 0), rf"{SECOND} is no whole safetensors file .*cut short"),
    "a shard lacks its end": (cut(SECOND, -9), rf"{SECOND} is no whole safetensors file .*cut short"),
    "a shard is a pointer": (written(SECOND, "version https://git-lfs"), rf"{SECOND} is no whole .*or is a pointer of git-lfs"),
    "config.json tells another vocabulary": (told(vocab_size=400), r"with \[300, 32\] instead of \[400, 32\]"),
    "config.json is no JSON": (written("config.json", "{"), r"/config.json cannot be read back: it is no JSON"),
    "config.json is no text": (written("config.json", b'{"a": "\xff"}'), r"/config.json cannot be read back: it is no JSON"),
    "config.json is a list": (written("config.json", "[1]"), r"/config.json cannot be read back: it must be an object"),
    "config.json is null": (written("config.json", "null"), r"/config.json cannot be read back: it must be an object, got null"),
    "config.json names no type": (written("config.json", "{}"), r"does not understand .*/config.json: compare it"),
    "config.json has a wrong type": (told(hidden_size="wide"), r"'hidden_size' expected int.* does not understand"),
    "config.json has an odd function": (told(hidden_act="zelu"), r"'zelu'.* cannot build what .*/config.json describes"),
    "there is no tokenizer": (gone("tokenizer.json", "tokenizer_config.json"), r"reading the tokenizer .* should hold the files"),
    "the tokenizer is no JSON": (written("tokenizer.json", "{"), r"/tokenizer.json cannot be read back: it is no JSON"),
    "the tokenizer is a list": (written("tokenizer.json", "[]"), r"/tokenizer.json cannot be read back: it must be an object"),
    "the tokenizer's config is a list": (written("tokenizer_config.json", "[]"), r"/tokenizer_config.json cannot be read back"),
    "generation_config.json is a list": (written("generation_config.json", "[]"), r"/generation_config.json cannot be read back"),
    "there are no weights": (
        lambda folder: [path.unlink() for path in folder.glob("model*")], r"holds no weights: expected model.safetensors, or",
    ),
}  # fmt: skip


@pytest.mark.parametrize("placement", [Placement.WHOLE, Placement.STREAM])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused_by_the_name_of_its_file(case, placement, sharded, tmp_path):
    spoil, expected = BROKEN[case]
    folder = shutil.copytree(sharded, tmp_path / "model")
    spoil(folder)
    with pytest.raises(ModelError, match=expected) as error:
        load_model(ModelConfig(str(folder), device="cpu", placement=placement))
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_a_weight_of_another_shape_is_named(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "model")
    reshaped(folder)
    with pytest.raises(ModelError, match=rf"1 weights .* such as {Q_PROJ} with \[8, 8\] instead of \[32, 32\]"):
        load_model(ModelConfig(str(folder), device="cpu"))
    # blocks that stay on disk are looked at when it is known what will be written
    loaded = load_model(ModelConfig(str(folder), device="cpu", placement=Placement.STREAM))
    with pytest.raises(ModelError, match=rf"{Q_PROJ} has the shape \[8, 8\] .* needs \[32, 32\]"):
        PrunedCheckpoint(loaded, tmp_path / "out")


def test_an_index_that_forgets_a_tensor_loses_none(sharded, tmp_path):
    # from_pretrained reads all that the shards hold
    folder = shutil.copytree(sharded, tmp_path / "model")
    index = json.loads((folder / INDEX).read_text())
    expected = set(index["weight_map"])
    del index["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(index))
    assert set(open_source(folder)) == expected
