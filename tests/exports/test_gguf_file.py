"""GGUF files of models that were cut, run by llama.cpp itself."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from selfprune.exports.pruned_checkpoint import PrunedCheckpoint
from selfprune.exports.save import save_checkpoint
from selfprune.gguf import main as gguf
from selfprune.models.loading import LoadedModel, register_per_layer
from selfprune.models.structures import list_items, list_structures
from selfprune.models.units import find_blocks
from selfprune.pruners.structures.wanda_sp import WandaSP

TEXT = "the cat of 1999 sat on the mat, said the cat"
SIZES = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


@pytest.fixture(scope="module")
def byte_level():
    """A tokenizer of byte-level BPE that splits digits off."""
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(split), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template="{{ messages[0].content }}")


@pytest.fixture
def save(make_tiny_model, byte_level, tmp_path):
    """Saves a model without the first items of some sublayers, given as (kind, block) -> share."""

    def call(family="llama", shares=None, **changes):
        model = make_tiny_model(family, **(SIZES | changes)).float()
        loaded = LoadedModel(model, byte_level, list_items(model, WandaSP().items()), find_blocks(model)[1], torch.device("cpu"))
        for structure in list_structures(model):
            share = (shares or {}).get((structure.unit.kind, structure.unit.block), 0)
            reader = structure.reader
            n = int(share * structure.unit.n_items)
            model.get_parameter(reader.parameter).narrow(reader.axis, 0, n * reader.width).zero_()
        save_checkpoint(PrunedCheckpoint(loaded, tmp_path / "model", by_block=False), tmp_path / "model")
        register_per_layer(tmp_path / "model")
        return tmp_path / "model"

    return call


def logits_of_llama_cpp(path, ids):
    """What llama.cpp says of the last token, and how it reads the text."""
    llama_cpp = pytest.importorskip("cyllama.llama.llama_cpp")

    class Model(llama_cpp.LlamaModel):
        @property
        def n_vocab(self):  # which version 0.2.18 asks of its own class, that has none
            return self.get_vocab().n_vocab

    model, options = Model(str(path)), llama_cpp.LlamaContextParams()
    options.n_ctx, options.n_threads = 64, 1
    context, batch = llama_cpp.LlamaContext(model, options), llama_cpp.LlamaBatch(n_tokens=64, embd=0, n_seq_max=1)
    batch.set_batch(ids, 0, True)
    context.decode(batch)
    own = model.get_vocab().tokenize(TEXT, add_special=True, parse_special=False)
    return torch.tensor(context.get_logits_ith(len(ids) - 1)), own


@pytest.mark.parametrize(
    ("family", "shares"),
    [
        ("llama", {}),
        ("llama", {("self_attn", 0): 0.5, ("mlp", 0): 0.5, ("mlp", 1): 0.25, ("self_attn", 2): 1, ("mlp", 3): 1}),
        ("llama", {("self_attn", 1): 1, ("mlp", 1): 1}),
        ("mistral", {("self_attn", 1): 0.5}),
    ],
    ids=["whole", "everything", "a block less", "mistral"],
)
def test_llama_cpp_reads_the_text_and_says_the_same(family, shares, save, tmp_path, byte_level, capfd):
    folder = save(family, shares, **({"sliding_window": None} if family == "mistral" else {}))
    assert gguf([str(folder), str(tmp_path / "model.gguf")]) == 0
    assert "model.gguf: " in capfd.readouterr().out
    ids = byte_level(TEXT)["input_ids"]
    logits, own = logits_of_llama_cpp(tmp_path / "model.gguf", ids)
    assert own == ids
    expected = AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(logits, expected, atol=2e-3, rtol=2e-3)


def test_what_the_file_says_of_the_model_is_what_the_checkpoint_says(save, tmp_path):
    reader = pytest.importorskip("gguf").GGUFReader
    folder = save("llama", {("self_attn", 0): 0.5, ("self_attn", 2): 1, ("mlp", 3): 1})
    assert gguf([str(folder), str(tmp_path / "model.gguf")]) == 0
    fields = reader(tmp_path / "model.gguf").fields
    told = {name: fields[f"deci.{name}"].contents() for name in ("attention.head_count", "attention.head_count_kv")}
    assert told == {"attention.head_count": [2, 4, 0, 4], "attention.head_count_kv": [1, 2, 0, 2]}
    assert fields["deci.feed_forward_length"].contents() == [96, 96, 96, 32]
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.chat_template"].contents() == "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("qwen3", {}, "models of the type qwen3 have no such form; those that can be written are llama, mistral"),
        ("mistral", {"sliding_window": 16}, "its attention looks back on a window of 16 tokens"),
        ("llama", {"attention_bias": True}, "it holds model.layers.0.self_attn."),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "positions are stretched (linear)",
        ),
    ],
)
def test_a_model_that_has_no_such_form_is_refused_and_nothing_is_left(family, changes, said, save, tmp_path, capsys):
    folder = save(family, **changes)
    assert gguf([str(folder), str(tmp_path / "model.gguf")]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_a_tokenizer_of_another_kind_is_refused(save, tmp_path, capsys):
    folder = save()
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": {"type": "Whitespace"}}))
    assert gguf([str(folder), str(tmp_path / "model.gguf")]) == 2
    assert "cannot be written as GGUF: expected byte-level BPE" in " ".join(capsys.readouterr().err.split())


def test_only_a_new_file_is_written(save, tmp_path, capsys):
    folder = save()
    (tmp_path / "there.gguf").write_text("mine")
    for file in (tmp_path / "there.gguf", tmp_path / "nowhere" / "x.gguf"):
        assert gguf([str(folder), str(file)]) == 2
        assert "must be a new file in a folder that exists" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "there.gguf").read_text() == "mine"
    assert gguf([str(folder)]) == 2
    assert "write selfprune gguf FOLDER FILE" in " ".join(capsys.readouterr().err.split())
