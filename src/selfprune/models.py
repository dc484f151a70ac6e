"""Loads a causal language model and lists its units, found by structure and not by a table of names.

Shape suffixes: O out, I in, E experts, N sequences, T tokens, V vocabulary.
"""

import logging
import os
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import constants, get_session
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from selfprune.allocation import Unit
from selfprune.errors import ConfigError, ModelError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
AUTO_MODEL: Any = AutoModelForCausalLM  # its annotations know neither `from_config` nor `output_loading_info`

PRUNABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
N_PROBE_TOKENS = 8
MAX_UNLISTED_FRACTION = 0.1


class DType(str, Enum):
    """The number format that the weights are loaded in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    AUTO = "auto"


@dataclass
class ModelConfig:
    """Which model to load, and how.

    Attributes:
        path: `embedded` (the model inside this package), a local folder, or a hub id such as `meta-llama/Llama-2-7b-hf`.
        dtype: number format of the weights; AUTO takes the checkpoint's.
        device: `auto` (a GPU if there is one), or any torch device such as `cpu` or `cuda:1`.
        trust_remote_code: run the modelling code that a checkpoint brings along.
        revision: branch, tag or commit on the hub.
    """

    path: str = "embedded"
    dtype: DType = DType.FLOAT32
    device: str = "auto"
    trust_remote_code: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ConfigError(
                "model.path must be 'embedded', a folder or a hub id, got an empty text; leave it out for the embedded model"
            )
        try:
            self.torch_device()
        except RuntimeError as error:
            raise ConfigError(f"model.device must be auto, cpu, cuda or cuda:<number>, got {self.device!r}") from error

    def torch_device(self) -> torch.device:
        """The device, with `auto` decided."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)


@dataclass
class LoadedModel:
    """A model in eval mode without gradients, and what can be pruned of it.

    Attributes:
        model: the Hugging Face model.
        tokenizer: its tokenizer.
        units: one per prunable weight, in model order.
        blocks: the decoder blocks, first to last.
        device: where the weights lie.
    """

    model: Any
    tokenizer: Any
    units: tuple[Unit, ...]
    blocks: list[nn.Module]
    device: torch.device

    @property
    def max_positions(self) -> int | None:
        """The longest window that the model has positions for; None when it does not say."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return positions if isinstance(positions, int) and positions > 0 else None


@dataclass(frozen=True)
class Preflight:
    """What loading needs and what there is.

    Attributes:
        n_parameters: parameters of the whole model, tied ones once.
        needed_bytes: memory for the weights and for what the caller adds per parameter.
        available_bytes: free memory of the device; None where the system does not say.
    """

    n_parameters: int
    needed_bytes: int
    available_bytes: int | None


def load_model(config: ModelConfig) -> LoadedModel:
    """Loads a model after it is known to be understood and to fit; a local one never touches the network.

    Raises:
        ModelError: when the model is missing, out of reach, broken, too large, not causal or not understood.
    """
    path, options = _source(config)
    skeleton = _skeleton(config, path, options)
    units = list_units(skeleton)
    preflight = _check_memory(config, skeleton, bytes_per_parameter=0.0)
    logger.info("loading %s: %s parameters, %d units", config.path, f"{preflight.n_parameters:,}", len(units))
    tokenizer = _attempt(config, "reading the tokenizer", lambda: AutoTokenizer.from_pretrained(path, **options))
    model = _attempt(config, "reading the weights", lambda: _load_weights(config, path, options))
    device = config.torch_device()
    model = _attempt(config, f"moving to {device}", lambda: model.to(device))
    model.eval().requires_grad_(False)
    blocks_path, blocks = find_blocks(model)
    _attempt(config, "a trial run", lambda: _check_by_running(model, blocks_path, blocks, device))
    return LoadedModel(model, tokenizer, units, blocks, device)


def preflight_memory(config: ModelConfig, bytes_per_parameter: float) -> Preflight:
    """Checks, before any weight is read, that the model fits into the device's free memory.

    Args:
        config: the model.
        bytes_per_parameter: what the caller will hold per parameter besides the weights themselves.

    Raises:
        ModelError: when it does not fit, or when its configuration cannot be read.
    """
    return _check_memory(config, _skeleton(config, *_source(config)), bytes_per_parameter)


def hub_is_reachable(timeout_seconds: float = 5.0) -> bool:
    """Whether the hub answers at all; asked once, because its own client retries for half a minute per file."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout_seconds)
    except Exception:  # the client's errors are its HTTP library's, which changed between its versions
        return False
    return True


def find_blocks(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The path of the decoder blocks' list and the blocks themselves.

    They are the longest list of like modules beside the token embedding; so vision towers and lists of experts never win.

    Raises:
        ModelError: when there is no such list.
    """
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        embedding = None
    path = next((name for name, module in model.named_modules() if module is embedding), "")
    while path:
        path = path.rpartition(".")[0]
        lists = dict(_outermost_lists(model.get_submodule(path), path))
        if lists:
            longest = max(lists, key=lambda name: len(lists[name]))
            return longest, list(lists[longest])
    found = [
        f"{n}: {len(m)} of {sorted({type(x).__name__ for x in m})}"
        for n, m in model.named_modules()
        if isinstance(m, nn.ModuleList)
    ]
    raise ModelError(
        f"the decoder blocks of {type(model).__name__} were not found: expected a list of modules of one class with linear "
        "layers "
        f"beside the token embedding, found {'; '.join(found[:4]) or 'no list of modules'}; selfprune cannot prune this "
        "architecture"
    )


def list_units(model: nn.Module) -> tuple[Unit, ...]:
    """One unit per linear weight of every decoder block, fused experts being one unit per parameter; routers are left out.

    Raises:
        ModelError: when the weights of the blocks are not understood.
    """
    path, blocks = find_blocks(model)
    units, seen = [], set()
    for index, block in enumerate(blocks):
        weights = dict(_prunable_weights(block, model.config.get_text_config().hidden_size))  # type: ignore[operator, union-attr]
        _check_understood(f"{path}.{index}", block, weights)
        for kind, weight in weights.items():
            if id(weight) in seen:
                raise ModelError(
                    f"the weight {path}.{index}.{kind} is shared between blocks, so it cannot have a sparsity per block"
                )
            seen.add(id(weight))
            units.append(Unit(f"{path}.{index}.{kind}", index, kind, weight.numel()))
    return tuple(units)


def weight_view(model: nn.Module, unit: Unit) -> Tensor:
    """The unit's weight as a matrix [O, I] that shares the model's memory; fused experts [E, O, I] become [E*O, I]."""
    owner = _owner(model, unit)
    if isinstance(owner, nn.Parameter):
        return owner.detach().view(-1, owner.shape[-1])
    weight: Tensor = owner.weight.detach()  # type: ignore[operator]
    return weight.T if isinstance(owner, Conv1D) else weight


def n_row_groups(model: nn.Module, unit: Unit) -> int:
    """How many matrices are stacked in `weight_view`: the number of fused experts, else 1."""
    owner = _owner(model, unit)
    return owner.shape[0] if isinstance(owner, nn.Parameter) else 1


def _owner(model: nn.Module, unit: Unit) -> nn.Module | nn.Parameter:
    """The module that a unit names, or the parameter where experts are fused."""
    parent, _, name = unit.name.rpartition(".")
    owner: nn.Module | nn.Parameter = getattr(model.get_submodule(parent), name)
    return owner


def _source(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Where to read from, and the options that every `from_pretrained` takes."""
    folder = Path(str(files("selfprune.embedded") / "weights")) if config.path == "embedded" else Path(config.path).expanduser()
    looks_like_path = (
        config.path == "embedded" or folder.is_absolute() or config.path.startswith((".", "~")) or config.path.count("/") > 1
    )
    if folder.is_file():
        raise ModelError(f"model.path must be a folder or a hub id, got the file {config.path}; give the folder that holds it")
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


def _attempt(config: ModelConfig, doing: str, call: Callable[[], Result]) -> Result:
    """Runs a library call; whatever it raises becomes one paragraph with a remedy."""
    try:
        return call()
    except ModelError:
        raise
    except Exception as error:  # libraries raise anything here, from OSError to KeyError
        if config.path == "embedded" or Path(config.path).expanduser().is_dir():
            remedy = (
                "check that the folder holds a whole checkpoint of a causal language model that the installed transformers knows"
            )
        else:
            remedy = (
                "there is no such folder here, so it was taken for a hub id; check its spelling and access rights and the "
                "network, or "
                "download it elsewhere and give model.path=<folder>"
            )
            remedy += ", or unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else ""
        said = f"{type(error).__name__}: {textwrap.shorten(str(error), 300)}"
        raise ModelError(f"{doing} of model.path={config.path} failed ({said}); {remedy}") from error


def _skeleton(config: ModelConfig, path: str, options: dict[str, Any]) -> Any:
    """The model without its weights."""
    architecture = _attempt(config, "reading the configuration", lambda: AutoConfig.from_pretrained(path, **options))
    if getattr(architecture, "is_encoder_decoder", False):
        raise ModelError(
            f"model.path={config.path} is an encoder-decoder ({architecture.model_type}); selfprune prunes decoder-only causal "
            "models"
        )
    if getattr(architecture, "quantization_config", None) is not None:
        raise ModelError(
            f"model.path={config.path} is a quantised checkpoint, whose weights cannot be pruned; give the unquantised one"
        )

    def build() -> Any:
        with torch.device("meta"):
            return AUTO_MODEL.from_config(architecture, trust_remote_code=config.trust_remote_code)

    return _attempt(config, "building the architecture", build)


def _load_weights(config: ModelConfig, path: str, options: dict[str, Any]) -> Any:
    model, loading = AUTO_MODEL.from_pretrained(path, dtype=config.dtype.value, output_loading_info=True, **options)
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelError(
            f"the checkpoint of model.path={config.path} lacks {len(missing)} weights that {type(model).__name__} needs, such as "
            f"{', '.join(missing[:3])}, which would be random; give a whole checkpoint of a causal language model"
        )
    broken = next((name for name, parameter in model.named_parameters() if not parameter.isfinite().all()), None)
    if broken is not None:
        raise ModelError(
            f"the weight {broken} of model.path={config.path} holds NaN or infinite numbers; the checkpoint is broken, fetch it "
            "again"
        )
    return model


def _check_memory(config: ModelConfig, skeleton: Any, bytes_per_parameter: float) -> Preflight:
    dtype = (
        getattr(torch, config.dtype.value)
        if config.dtype is not DType.AUTO
        else skeleton.config.get_text_config().dtype or torch.float32
    )
    n_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    needed = round(n_parameters * (dtype.itemsize + bytes_per_parameter))
    device = config.torch_device()
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"model.device={config.device}, but torch sees no GPU here; give model.device=cpu, or install a torch build with CUDA"
        )
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory_bytes()
    if available is not None and needed > available:
        raise ModelError(
            f"model.path={config.path} does not fit: {n_parameters:,} parameters at {dtype.itemsize} bytes, and "
            f"{bytes_per_parameter:g} more each "
            f"for the run, need {needed / 1e9:.2f} GB, but {device} has {available / 1e9:.2f} GB free; give "
            "model.dtype=BFLOAT16, "
            f"a device with more memory or a smaller model"
        )
    return Preflight(n_parameters, needed, available)


def _free_memory_bytes() -> int | None:
    """Memory that can be had without swapping, within the container's limit if there is one."""
    candidates = []
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        candidates.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            candidates.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        group = Path("/sys/fs/cgroup")
        held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        candidates.append(max(0, int((group / "memory.max").read_text()) - int(held["anon"])))
    except (OSError, KeyError, ValueError):
        pass
    return min(candidates, default=None)


def _outermost_lists(module: nn.Module, path: str) -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of like modules with linear layers inside them, those within other lists left out."""
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if not isinstance(child, nn.ModuleList):
            yield from _outermost_lists(child, child_path)
        elif len({type(member) for member in child}) == 1 and _holds_linear(child[0]):
            yield child_path, child


def _holds_linear(block: nn.Module) -> bool:
    return any(name and isinstance(module, nn.Linear | Conv1D) for name, module in block.named_modules())


def _prunable_weights(block: nn.Module, hidden_size: int) -> Iterator[tuple[str, Tensor]]:
    """Kind -> weight of one block."""
    fused = {path: weights for path, m in block.named_modules() if (weights := _fused_experts(m, hidden_size))}
    n_experts = {path[: path.rfind(".") + 1]: next(iter(weights.values())).shape[0] for path, weights in fused.items()}
    n_experts |= {path[: path.rfind(".") + 1]: len(m) for path, m in block.named_modules() if isinstance(m, nn.ModuleList)}
    for path, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            n_outputs = module.nf if isinstance(module, Conv1D) else module.out_features
            is_router = any(n_outputs == n and path.startswith(siblings) for siblings, n in n_experts.items())
            if n_outputs > 1 and not is_router:
                yield path, module.weight
        for name, weight in fused.get(path, {}).items():
            yield f"{path}.{name}", weight


def _fused_experts(module: nn.Module, hidden_size: int) -> dict[str, nn.Parameter]:
    """The expert weights [E, O, I] of a module: the first reads the hidden state, the last writes it; transposed ones do not."""
    weights = {name: p for name, p in module.named_parameters(recurse=False) if p.ndim == 3}
    if len(weights) < 2 or getattr(module, "is_transposed", False):
        return {}
    first, *_, last = weights.values()
    return weights if first.shape[2] == hidden_size and last.shape[1] == hidden_size else {}


def _check_understood(path: str, block: nn.Module, weights: dict[str, Tensor]) -> None:
    """Checks that nearly all of a block's matrix weights became units."""
    wrong = sorted({str(weight.dtype) for weight in weights.values() if weight.dtype not in PRUNABLE_DTYPES})
    if wrong:
        raise ModelError(
            f"the weights of {path} must be floating-point numbers of 16 to 64 bits, got {', '.join(wrong)}; give an "
            "unquantised checkpoint"
        )
    listed = {id(weight) for weight in weights.values()}
    unlisted = {name: p for name, p in block.named_parameters() if p.ndim > 1 and id(p) not in listed}
    n_unlisted = sum(p.numel() for p in unlisted.values())
    if n_unlisted > MAX_UNLISTED_FRACTION * (n_unlisted + sum(weight.numel() for weight in weights.values())):
        found = "; ".join(f"{name} {tuple(p.shape)}" for name, p in unlisted.items())
        raise ModelError(
            f"the block {path} ({type(block).__name__}) is not understood: expected linear layers and fused experts stored "
            "(expert, out, in), "
            f"found more than a tenth of its weights elsewhere: {found}; selfprune cannot prune this architecture"
        )


def _check_by_running(model: Any, path: str, blocks: list[nn.Module], device: torch.device) -> None:
    """Checks on two sequences with one prefix that each block runs once, in order, and that no token sees a later one."""
    order: list[int] = []
    hooks = [b.register_forward_pre_hook(lambda *_, i=i: order.append(i)) for i, b in enumerate(blocks)]
    tokens_NT = torch.arange(N_PROBE_TOKENS, device=device).repeat(2, 1) % model.config.get_text_config().vocab_size
    tokens_NT[1, -1] = 0
    try:
        with torch.no_grad():
            logits_NTV = model(input_ids=tokens_NT, attention_mask=torch.ones_like(tokens_NT), use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if order != list(range(len(blocks))):
        raise ModelError(
            f"the blocks {path} of {type(model).__name__} should run once each and in order, but ran as {order}; it cannot be "
            "pruned"
        )
    if not logits_NTV.isfinite().all():
        raise ModelError(
            f"{type(model).__name__} gives NaN or infinite logits as loaded; its weights are broken, or it needs "
            "model.dtype=FLOAT32"
        )
    prefix_NTV = logits_NTV[:, :-1].float()
    if (prefix_NTV[0] - prefix_NTV[1]).abs().max() > 8 * torch.finfo(logits_NTV.dtype).eps * prefix_NTV.abs().max():
        raise ModelError(
            f"{type(model).__name__} is not a causal language model: its early logits depend on a later token; give a "
            "decoder-only model"
        )
