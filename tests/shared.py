"""Fixtures that several tests share: tiny random models of every family, a tiny tokenizer, and a watch on the network."""

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
import yaml
from hydra._internal import defaults_list
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from selfprune.checkpoints import source as checkpoint_source
from selfprune.embedded.corpus import write_corpus
from selfprune.models.loading import LoadedModel, load_model
from selfprune.models.model_config import DType, ModelConfig
from selfprune.models.units import weight_view

# Bars of fixtures would stand in what a test captures.
disable_progress_bar()

# The models are so small that more threads only wait for each other, the more so when tests run side by side.
torch.set_num_threads(1)

# Hydra composes hundreds of configs here, mostly by work that changes nothing of ours: files are read faster by libyaml;
# schemas are copied where they change, and need not be before; whether a command line sweeps is said by its overrides, for which
# it is composed once more; and no file of ours chooses another by `${...}`, for which all choices are gathered at every file.
yaml.SafeLoader = yaml.CSafeLoader
ConfigStore.__deepcopy__ = lambda store, _: store
Hydra.get_mode = lambda hydra, config_name, overrides: RunMode.MULTIRUN if "hydra.mode=MULTIRUN" in overrides else None
gather_choices = defaults_list._create_interpolation_map
defaults_list._create_interpolation_map = lambda overrides, defaults, self_added: (
    gather_choices(overrides, defaults, self_added) if any(default.is_interpolation() for default in defaults) else None
)

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


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python in a process of its own: see `processes.python`."""
    return processes.python


# One of each layout: mistral, qwen2 and qwen3 are laid out like llama, gemma3 like gemma2, falcon like gpt_neox, qwen3_moe like
# qwen2_moe. Who counts units goes through all.
LAYOUTS = ("llama", "gemma2", "phi3", "opt", "gpt_neox", "gpt2", "mixtral", "qwen2_moe")


@pytest.fixture(params=LAYOUTS)
def family(request: pytest.FixtureRequest) -> str:
    """The `model_type` of a family of each layout, one after the other."""
    return str(request.param)


@pytest.fixture(params=FAMILIES)
def any_family(request: pytest.FixtureRequest) -> str:
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


@pytest.fixture(scope="session")
def load_sparse(load_tiny: Callable[..., LoadedModel]) -> Callable[..., LoadedModel]:
    """Gives a family's tiny model with a share of the weights of its units removed at random."""

    @torch.no_grad()
    def load(family: str, sparsity: float) -> LoadedModel:
        loaded = load_tiny(family)
        for i, unit in enumerate(loaded.units):
            matrix = weight_view(loaded.model, unit)
            matrix[torch.rand(matrix.shape, generator=torch.Generator().manual_seed(i)) < sparsity] = 0
        return loaded

    return load


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
