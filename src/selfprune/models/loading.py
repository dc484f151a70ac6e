"""Loads a causal language model after it is known to be understood and to fit."""

import json
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from selfprune.allocations.unit import Item, Unit
from selfprune.checkpoints.gguf_source import SUFFIX, dequantised, doubt_of_gguf
from selfprune.checkpoints.source import hub_is_reachable, open_source, source_folder
from selfprune.errors import ModelError
from selfprune.models.forward_check import check_by_running, check_entry, check_skeleton
from selfprune.models.load_failures import Result, Step, attempt, without_load_report
from selfprune.models.memory_check import MoreBytes, Preflight, check_memory
from selfprune.models.model_config import DType, ModelConfig, Placement
from selfprune.models.per_layer import register
from selfprune.models.placement import entry_device, loading_options, n_parameters_at_once
from selfprune.models.structures import list_items
from selfprune.models.units import find_blocks, has_transposed_experts, lay_out_experts, list_units, n_parameters
from selfprune.models.vocabulary import check_vocabulary
from selfprune.models.weight_checks import check_numbers, check_shapes, doubts_of_loading

logger = logging.getLogger(__name__)
AUTO_MODEL: Any = AutoModelForCausalLM  # its annotations know neither `from_config` nor `output_loading_info`


@dataclass
class LoadedModel:
    """A model in eval mode without gradients, and what can be pruned of it.

    Attributes:
        model: the Hugging Face model.
        tokenizer: its tokenizer.
        units: one per prunable weight, or the heads and channels (`for_items`), in model order.
        blocks: the decoder blocks, first to last.
        device: where the weights lie.
        source: the folder of the checkpoint that it was loaded from; None for a model that was made in memory.
        doubts: what makes results with it doubtful, a paragraph each.
        biases: names of biases that a recovery sets.
        new_biases: those among them that the family does not know.
    """

    model: Any
    tokenizer: Any
    units: tuple[Unit, ...]
    blocks: list[nn.Module]
    device: torch.device
    source: Path | None = None
    doubts: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    new_biases: tuple[str, ...] = ()

    @cached_property
    def blocks_path(self) -> str:
        """The path of the blocks' list, for which the whole tree of modules is searched once."""
        return find_blocks(self.model)[0]

    @property
    def n_parameters(self) -> int:
        """All parameters of the model, tied ones once, without biases that a recovery brought along."""
        n_new: int = sum(self.model.get_parameter(name).numel() for name in self.new_biases)
        return n_parameters(self.model) - n_new

    def for_items(self, items: Collection[Item]) -> "LoadedModel":
        """The same model with the units whose items are of these kinds.

        Raises:
            ModelError: when they are heads or channels, and the family is not known.
        """
        return replace(self, units=list_items(self.model, items))

    def block_prefix(self, index: int) -> str:
        """What the names of a block's parameters begin with."""
        return f"{self.blocks_path}.{index}."


def max_positions(model: Any) -> int | None:
    """The longest window that a model has positions for; None when it does not say."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def load_model(config: ModelConfig, scratch: Path | None = None) -> LoadedModel:
    """Loads a model after it is known to be understood and to fit; a local one never touches the network.

    Args:
        config: the model.
        scratch: an empty folder for weights that stay on disk, but in another form than the checkpoint's (fused experts).

    Raises:
        ModelError: when the model is missing, out of reach, broken, too large, not causal or not understood.
    """
    path, options = find_source(config)
    skeleton = load_skeleton(config, path, options)
    units = list_units(skeleton)
    if config.placement is not Placement.WHOLE and has_transposed_experts(skeleton):
        raise ModelError(
            f"model.placement={config.placement.name} is not for a {type(skeleton).__name__}, whose experts are stored as "
            "(expert, in, out) and are laid out anew in memory; give model.placement=WHOLE"
        )
    check_skeleton(skeleton, find_blocks(skeleton)[1])
    preflight = _check_memory(config, skeleton)
    logger.info("loading %s: %s parameters, %d units", config.path, f"{preflight.n_parameters:,}", len(units))
    tokenizer = _attempt(config, path, Step.TOKENIZER, lambda: AutoTokenizer.from_pretrained(path, **options))
    check_vocabulary(config.path, tokenizer, skeleton)
    options |= loading_options(config.placement, skeleton, config.torch_device(), scratch)
    model, unused = _attempt(config, path, Step.WEIGHTS, lambda: _load_weights(config, path, options))
    device = entry_device(config.placement, model, config.torch_device())
    if config.placement is Placement.WHOLE:
        model = _attempt(config, path, Step.DEVICE, lambda: model.to(device))
    model.eval().requires_grad_(False)
    lay_out_experts(model)
    source = _attempt(config, path, Step.FILES, lambda: source_folder(path, options))
    blocks_path, blocks = find_blocks(model)
    check = check_entry if config.placement is Placement.STREAM else check_by_running
    _attempt(config, path, Step.TRIAL, lambda: check(model, blocks_path, blocks, device))
    of_file = doubt_of_gguf(Path(config.path).expanduser()) if config.path.endswith(SUFFIX) else ""
    doubts = *([of_file] if of_file else []), *doubts_of_loading(config.path, model, unused)
    return LoadedModel(model, tokenizer, units, blocks, device, source, doubts)


def preflight_memory(config: ModelConfig, more: MoreBytes = lambda *_: 0) -> Preflight:
    """Checks, before any weight is read, that the model fits into the device's free memory.

    Args:
        config: the model.
        more: what the caller will hold besides the weights.

    Raises:
        ModelError: when it does not fit, or when its configuration cannot be read.
    """
    return _check_memory(config, load_skeleton(config, *find_source(config)), more)


def find_source(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Where to read from, and the options that every `from_pretrained` takes."""
    folder = Path(str(files("selfprune.embedded") / "weights")) if config.path == "embedded" else Path(config.path).expanduser()
    looks_like_path = (
        config.path == "embedded" or folder.is_absolute() or config.path.startswith((".", "~")) or config.path.count("/") > 1
    )
    if folder.is_file() and folder.suffix == SUFFIX:
        folder = dequantised(folder)
    if folder.suffix == SUFFIX and not folder.exists():
        raise ModelError(f"model.path={config.path}: there is no such file; fetch it, or give the path of another GGUF file")
    if folder.is_file():
        raise ModelError(
            f"model.path must be a folder, a hub id or a GGUF file, got the file {config.path}; give the folder that holds it"
        )
    if looks_like_path and not folder.is_dir():
        raise ModelError(
            f"model.path={config.path}: there is no folder {folder}; give the folder of a Hugging Face checkpoint, or a hub id"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(
            f"model.path={config.path}: the folder {folder} holds no config.json, so it is no Hugging Face checkpoint"
        )
    local = folder.is_dir()
    options = {
        "local_files_only": local or not hub_is_reachable(),
        "trust_remote_code": config.trust_remote_code,
        "revision": config.revision,
    }
    return str(folder) if local else config.path, options


def _attempt(config: ModelConfig, path: str, step: Step, call: Callable[[], Result]) -> Result:
    return attempt(config.path, Path(path) if Path(path).is_dir() else None, step, call)


def register_per_layer(folder: Path) -> None:
    """Lets transformers know the type of a folder's model where its blocks were cut to different widths."""
    with suppress(OSError, ValueError, AttributeError):  # whatever is wrong with it is told when it is read for good
        register(json.loads((folder / "config.json").read_bytes()).get("model_type", ""))


def load_skeleton(config: ModelConfig, path: str, options: dict[str, Any]) -> Any:
    """The model without its weights."""
    _attempt(config, path, Step.CONFIGURATION, lambda: register_per_layer(Path(path)))
    architecture = _attempt(config, path, Step.CONFIGURATION, lambda: AutoConfig.from_pretrained(path, **options))
    if getattr(architecture, "is_encoder_decoder", False):
        raise ModelError(
            f"model.path={config.path} is an encoder-decoder ({architecture.model_type}); selfprune prunes decoder-only causal "
            "models"
        )
    if getattr(architecture, "quantization_config", None) is not None:
        raise ModelError(
            f"model.path={config.path} is a quantised checkpoint, whose weights cannot be pruned; give the unquantised one"
        )

    if not config.trust_remote_code and type(architecture) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"model.path={config.path} is a {architecture.model_type}, for which transformers {transformers.__version__} has no "
            "causal language model; give the checkpoint of one, or model.trust_remote_code=true if it brings its own code"
        )

    def build() -> Any:
        with torch.device("meta"):
            return AUTO_MODEL.from_config(architecture, trust_remote_code=config.trust_remote_code)

    return _attempt(config, path, Step.ARCHITECTURE, build)


def _load_weights(config: ModelConfig, path: str, options: dict[str, Any]) -> tuple[Any, set[str]]:
    """The model, and the names of the checkpoint's tensors that it has no place for."""
    # Only the eager loop over experts shows calibration what each of them sees; the default kernels take all of them at once.
    with without_load_report():
        model, loading = AUTO_MODEL.from_pretrained(
            path,
            dtype=config.dtype.value,
            experts_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told by name
            **options,
        )
    check_shapes(config.path, loading["mismatched_keys"])
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelError(
            f"the checkpoint of model.path={config.path} lacks {len(missing)} weights that {type(model).__name__} needs, such as "
            f"{', '.join(missing[:3])}, which would be random; give a whole checkpoint of a causal language model"
        )
    check_numbers(config.path, model, lambda: open_source(source_folder(path, options)))
    return model, set(loading["unexpected_keys"])


def _check_memory(config: ModelConfig, skeleton: Any, more: MoreBytes = lambda *_: 0) -> Preflight:
    text_config = skeleton.config.get_text_config()
    dtype = (text_config.dtype or torch.float32) if config.dtype is DType.AUTO else getattr(torch, config.dtype.value)
    n_parameters = n_parameters_at_once(config.placement, skeleton)
    more_bytes = more(skeleton, n_parameters, dtype.itemsize)
    return check_memory(config.path, skeleton, n_parameters, dtype, config.torch_device(), more_bytes)
