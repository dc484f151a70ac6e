"""The run folder: who owns it, whether the run fits, and how a broken run is taken up again."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from selfprune.configs.config import RunConfig
from selfprune.configs.recorded_config import recompose, settled_overrides, to_record
from selfprune.data.splits import check_texts
from selfprune.errors import ConfigError, SelfpruneError, refused_path
from selfprune.evaluators.kl_divergence import KLDivergence
from selfprune.evaluators.windows import LOGIT_BYTES
from selfprune.levels.level_store import number_dtype
from selfprune.levels.levels_config import LevelKind
from selfprune.models.loading import max_positions, preflight_memory
from selfprune.models.placement import Placement
from selfprune.models.units import list_units, n_row_groups, weight_view
from selfprune.reports.resources import LIBRARY_BYTES, Resources
from selfprune.runs.display import Display
from selfprune.storage.disk import free_bytes
from selfprune.storage.environment import describe_environment, read_environment
from selfprune.storage.held_folder import HeldFolder, hold_existing_folder, hold_folder, hold_new_folder
from selfprune.storage.lock import LOCK
from selfprune.storage.recorded_files import read_text
from selfprune.storage.whole_files import disk_error, write_whole

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
OWN_FILE = re.compile(rf"{re.escape(LOCK)}(\.owner)?|{ENVIRONMENT}|\.({CONFIG}|{ENVIRONMENT})\.partial|{CONFIG}")
"""What a run writes before its config.yaml says that it was begun, and that file itself."""
HARNESS_BYTES = 300_000_000
"""Main memory of lm-eval and the libraries of data that a run adds to those of any command."""
GRADIENT_BYTES = 4
"""Memory per weight while a pruner gathers gradients."""


def preflight(config: RunConfig, folder: Path) -> Resources:
    """Refuses what cannot fit into memory or onto the disk, before any weight is read or anything written.

    Returns:
        what the run needs; the seconds are not known before the model runs.

    Raises:
        ConfigError: when the model would stay on disk, where a search cannot change it.
        DataError: when a text is missing or out of reach.
        LanguageModelError: when the language model of a new run cannot serve, though a search will ask it.
        ModelError: when the model does not fit into memory.
        SelfpruneError: when the results do not fit onto the disk.
    """
    if config.model.placement is Placement.STREAM:
        raise ConfigError(
            "a search needs the whole model at hand, but model.placement=STREAM leaves it on disk; choose WHOLE or SPREAD, or "
            "prune it without a search: python -m selfprune.prune"
        )
    check_texts(config.data)
    estimate = preflight_memory(config.model, partial(_held_bytes, config))
    needed, free = estimate.n_parameters * estimate.bytes_per_weight + 50_000_000, free_bytes(folder)
    if needed > free:
        raise SelfpruneError(
            f"the run would write about {needed / 1e9:.2f} GB into {folder}, but the disk has {free / 1e9:.2f} GB free; "
            f"free some space or choose another run_folder"
        )
    asks = any(proposer.asks_language_model for proposer in (config.proposer, *config.controls.values()))
    # A run that was begun may hold all the replies that it needs.
    if asks and not (folder / "language_model_calls.jsonl").exists():
        config.language_model.check()
    needs = (
        f"{estimate.n_parameters:,} parameters; the run needs about {estimate.needed_bytes / 1e9:.2f} GB of memory and "
        f"{needed / 1e9:.2f} GB of disk"
    )
    in_memory, on_disk = 0, 0
    if config.search.levels.kind is LevelKind.BUILT:
        in_memory, on_disk = _bytes_of_levels(config, estimate.skeleton, estimate.bytes_per_weight)
        needs += f"; built levels may take {in_memory / 1e9:.2f} and {on_disk / 1e9:.2f} GB more (search.levels)"
    Display().say(needs)
    # what is measured on a GPU is the GPU's memory, and levels lie in main memory
    main_bytes = LIBRARY_BYTES + HARNESS_BYTES + in_memory if config.model.torch_device().type == "cpu" else 0
    # nor does the run count what it leaves in a folder that was given
    return Resources(estimate.needed_bytes + main_bytes, needed + (0 if config.search.levels.folder else on_disk), 0.0)


def _bytes_of_levels(config: RunConfig, skeleton: Any, bytes_per_weight: int) -> tuple[int, int]:
    """Main memory and disk that built levels and their statistics may take: the bounds, or all of them where that is less."""
    units, levels = list_units(skeleton), config.search.levels
    n_levels = config.grid(units).n_levels
    of_levels = sum(n_levels[unit.name] * unit.n_weights * bytes_per_weight for unit in units)
    # no statistics are larger than the Gram matrices of the inputs, which several units may share
    of_statistics = sum(4 * n_row_groups(skeleton, unit) * weight_view(skeleton, unit).shape[1] ** 2 for unit in units)
    in_memory = min(int(levels.memory_gb * 1e9), of_levels) + min(int(levels.statistics_gb * 1e9), of_statistics)
    return in_memory, min(int(levels.cache_gb * 1e9), of_levels + of_statistics)


def _held_bytes(config: RunConfig, skeleton: Any, n_parameters: int, bytes_per_weight: int) -> int:
    """Memory of a run besides the weights, built levels apart.

    A copy of the weights and, for masks, the level at which each goes; what is kept of the texts; the logits of a batch, of
    windows or of lm-eval's requests; the hidden states of the calibration windows before and after a block; and those of the
    search windows before every block, as far as they may be kept.
    """
    per_parameter = bytes_per_weight + (GRADIENT_BYTES if config.pruner.needs_gradients else 0)
    text_config = skeleton.config.get_text_config()
    data, search, n_vocabulary = config.data, config.search, text_config.vocab_size
    kept = [(config.evaluator, data.n_search), (KLDivergence(), data.n_report)]
    per_position = sum(metric.kept_bytes(n_vocabulary) * n_windows for metric, n_windows in kept)
    hidden_bytes = text_config.hidden_size * bytes_per_weight
    per_position += 2 * data.n_calibration * hidden_bytes
    prefix_bytes = config.n_search_windows * data.n_tokens_per_window * text_config.num_hidden_layers * hidden_bytes
    needed: int = n_parameters * per_parameter + data.n_tokens_per_window * per_position
    of_windows = data.n_tokens_per_window * search.batch_size * n_vocabulary * (bytes_per_weight + LOGIT_BYTES)
    needed += max(of_windows, config.harness.logit_bytes(n_vocabulary, max_positions(skeleton), bytes_per_weight))
    # under SPREAD they lie beside the weights, of which nobody knows where either
    if search.levels.kind is LevelKind.MASKS and config.model.placement is not Placement.SPREAD:
        units = list_units(skeleton)
        n_levels = config.grid(units).n_levels
        needed += sum(unit.n_weights * number_dtype(n_levels[unit.name]).itemsize for unit in units)
    needed += min(prefix_bytes, search.prefix_cache_mb * 10**6)
    return needed


def hold_run_folder(composed: DictConfig, default: Path) -> HeldFolder:
    """Makes or takes the folder of a run, in which no other process works from now on.

    Args:
        composed: names it with `resume` or `run_folder`.
        default: where neither names one; with a number after it where that exists.

    Raises:
        ConfigError: when another process works in it, or `resume` names none.
        SelfpruneError: when it cannot be written.
    """
    folder = Path(composed.resume or composed.run_folder or default).expanduser()
    refusal = f"the run folder {folder} is in use by another process; wait for it, or choose another run_folder"
    try:
        if not composed.resume:
            return hold_folder(folder, refusal) if composed.run_folder else hold_new_folder(folder)
        if not folder.is_dir():
            raise ConfigError(f"resume must name the folder of a run that was begun, but there is no folder {folder}")
        return hold_existing_folder(folder, refusal)
    except OSError as error:
        raise disk_error(folder, error, "choose another run_folder") from error


@contextmanager
def opened(held: HeldFolder, composed: DictConfig, overrides: list[str]) -> Iterator[DictConfig]:
    """A run in its folder: a new one gets config and environment first, another must belong to this config.

    A new folder is removed again when a user's mistake ends the run before anything was measured.

    Args:
        held: the folder, which is released at the end.
        composed: the config.
        overrides: those of the command line, kept for `resume`.

    Yields:
        the config, composed from what was recorded where `resume` names the folder.

    Raises:
        ConfigError: when the folder belongs to another run or to something else.
        SelfpruneError: when it cannot be written.
    """
    folder, is_new = held.folder, False
    try:
        if composed.resume:
            composed, overrides = recompose(folder)
        content = _content(composed)
        is_new = _is_unused(folder, content)
        if is_new:
            _clear(folder)
            environment = describe_environment(settled_overrides(overrides, composed))
            write_whole(folder / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")
            write_whole(folder / CONFIG, content)
        yield composed
    except BaseException as error:
        is_mistake = isinstance(error, SelfpruneError) or (isinstance(error, OSError) and refused_path(error) is not None)
        is_kept = (folder / CONFIG).is_file() and not is_mistake
        if not is_kept and not (folder / "evaluations.jsonl").exists():
            if is_new:
                _clear(folder)
            held.withdraw()
        raise
    finally:
        held.release()


def _content(composed: DictConfig) -> str:
    """What config.yaml holds."""
    record = to_record(composed, without=("run_folder", "resume"))
    return OmegaConf.to_yaml(OmegaConf.create(record))


def _is_unused(folder: Path, content: str) -> bool:
    """Whether a folder holds no run yet.

    Raises:
        ConfigError: when it holds another one or something else.
    """
    path = folder / CONFIG
    if path.exists():
        # earlier versions did not record the methods
        earlier = content[: content.rfind("\nmethods:\n") + 1]
        if read_text(path, "restore it from a copy, or choose another run_folder") not in (content, earlier):
            raise ConfigError(
                f"the run folder {folder} belongs to another config (its config.yaml differs from this run's); choose another "
                f"run_folder, or continue that run with `python -m selfprune resume={folder}`"
            )
        read_environment(folder)  # which the report needs at the end
        return False
    if any(not OWN_FILE.fullmatch(file.name) for file in folder.iterdir()):
        raise ConfigError(
            f"the run folder {folder} exists and holds other things than a run; choose a new or an empty run_folder"
        )
    return True


def _clear(folder: Path) -> None:
    """Removes the files of a run that never began."""
    for file in folder.iterdir():
        if OWN_FILE.fullmatch(file.name) and not file.name.startswith(LOCK):
            file.unlink(missing_ok=True)
