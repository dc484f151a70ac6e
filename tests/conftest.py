"""Fixtures that several tests share: tiny random models of every family, a tiny tokenizer, and a watch on the network."""

import gc
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from selfprune.checkpoints import source as checkpoint_source
from selfprune.embedded.corpus import write_corpus
from selfprune.models.loading import LoadedModel, load_model
from selfprune.models.model_config import DType, ModelConfig

# Libraries and collected tests stay to the end: nothing in them is garbage (`pytest_collection_finish` goes on from here).
gc.disable()

# A shell that starts a job in the background lets it ignore Ctrl-C; the tests that send one would wait for nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Lines about progress would stand in what a test captures.
os.environ.setdefault("SELFPRUNE_LOG", "WARNING")

# Bars of fixtures would stand in what a test captures.
disable_progress_bar()

# No test survives a loss of power, and none waits for the disk.
os.fsync = lambda _: None

# The models are so small that more threads only wait for each other, the more so when tests run side by side.
torch.set_num_threads(1)

# The same examples every time, and a failing one is told as it was found: smaller ones would be looked for for minutes.
# `pytest --hypothesis-profile=default` draws others and makes the one that fails smaller.
settings.register_profile("suite", derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate], max_examples=60)
settings.load_profile("suite")

# What these build takes so long that one worker should do it for all tests that use it.
BUILT_ONCE = {"smoke", "small", "finished", "extended", "transformers_server", "wheel", "everything", "workspace", "tensors"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps tests that share a dear fixture on one worker (under `--dist loadgroup`), and begins with them."""
    dear = [item for item in items if isinstance(item, pytest.Function) and not BUILT_ONCE.isdisjoint(item.fixturenames)]
    for item in dear:
        item.add_marker(pytest.mark.xdist_group(item.module.__name__))
    first = set(dear)
    items.sort(key=lambda item: item not in first)


def pytest_collection_finish() -> None:
    """Leaves what the tests are made of out of every search for garbage: going through it took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(20_000)  # configs make thousands of objects each
    gc.enable()


VOCAB_SIZE = 300
GQA: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
MHA = {name: value for name, value in GQA.items() if name not in ("num_key_value_heads", "head_dim")}
MOE = GQA | {"num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GQA,
    "mistral": GQA | {"sliding_window": 16},
    "qwen2": GQA,
    "qwen3": GQA,
    "gemma2": GQA,
    "gemma3_text": GQA,
    "phi3": GQA,
    "opt": MHA | {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "gpt_neox": MHA,
    "gpt2": MHA | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "falcon": MHA,
    "mixtral": MOE | {"num_local_experts": 4},
    "qwen2_moe": MOE | {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    "qwen3_moe": MOE | {"num_experts": 4, "moe_intermediate_size": 24},
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each family's `model_type`, one after the other."""
    return str(request.param)


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., PreTrainedModel]:
    """Makes a tiny random model: `make_tiny_model("gpt2", seed=0, n_layer=3)`; further arguments go to its configuration."""

    made: dict[str, PreTrainedModel] = {}

    def make(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
        key = repr((family, seed, changes))
        if key not in made:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                config = AutoConfig.for_model(family, **(FAMILIES.get(family, GQA) | changes))
                made[key] = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        return deepcopy(made[key])

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of the embedded world that fits the tiny models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([write_corpus(0, 20_000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>")


@pytest.fixture(scope="session")
def tiny_model_folder(
    make_tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """Gives the folder of a family's tiny model, saved with its tokenizer; it is shared, so copy it before changing it."""
    folders: dict[str, Path] = {}

    def save(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            make_tiny_model(family).save_pretrained(folders[family])
            tiny_tokenizer.save_pretrained(folders[family])
        return folders[family]

    return save


@pytest.fixture(scope="session")
def load_tiny(
    make_tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_model_folder: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., LoadedModel]:
    """Gives a copy, which may be changed, of a family's tiny model as loaded, with changes to its config if there are any."""

    @cache
    def load(family: str, dtype: DType, changes: str) -> LoadedModel:
        folder = tmp_path_factory.mktemp(family) if changes else tiny_model_folder(family)
        if changes:
            make_tiny_model(family, **json.loads(changes)).save_pretrained(folder)
            tiny_tokenizer.save_pretrained(folder)
        return load_model(ModelConfig(str(folder), dtype, device="cpu"))

    def copy_of(family: str, dtype: DType = DType.FLOAT32, **changes: Any) -> LoadedModel:
        loaded = load(family, dtype, json.dumps(changes) if changes else "")
        return deepcopy(loaded, {id(loaded.tokenizer): loaded.tokenizer})

    return copy_of


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Refuses every connection, and lists the hosts that were asked for; nobody knows yet whether the hub answers."""
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        asked.append(arguments[0])
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: refuse(address))
    checkpoint_source._answers.cache_clear()
    yield asked
    checkpoint_source._answers.cache_clear()
