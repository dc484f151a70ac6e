"""The run folder: who owns it, and how a broken run is taken up again."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from selfprune.configs.recorded_config import recompose, settled_overrides, to_record
from selfprune.errors import ConfigError, SelfpruneError, refused_path
from selfprune.storage.environment import describe_environment, read_environment
from selfprune.storage.held_folder import HeldFolder, hold_existing_folder, hold_folder, hold_new_folder
from selfprune.storage.lock import LOCK
from selfprune.storage.recorded_files import read_text
from selfprune.storage.whole_files import disk_error, write_whole

CONFIG, ENVIRONMENT, REPORT = "config.yaml", "environment.json", "report.json"
OWN_FILE = re.compile(rf"{re.escape(LOCK)}(\.owner)?|{ENVIRONMENT}|\.({CONFIG}|{ENVIRONMENT})\.partial|{CONFIG}")
"""What a run writes before its config.yaml says that it was begun, and that file itself."""


def hold_run_folder(composed: DictConfig, default: Path) -> HeldFolder:
    """Makes or takes the folder of a run, in which no other process works from now on.

    Args:
        composed: names it with `resume` or `run_folder`.
        default: where neither names one; with a number after it where that exists.

    Raises:
        ConfigError: when another process works in it (`InUseError`), or `resume` names none.
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
    folder, is_new, is_resumed = held.folder, False, bool(composed.resume)
    try:
        if is_resumed:
            composed, overrides = recompose(folder)
        content = config_content(composed)
        is_new = _is_unused(folder, content, is_resumed)
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


def is_finished(folder: Path, content: str) -> bool:
    """Whether a run of this config came to its end in a folder.

    Args:
        folder: which need not exist.
        content: what its config.yaml holds.
    """
    ends = (folder / REPORT, folder / CONFIG)
    return all(path.is_file() for path in ends) and read_text(folder / CONFIG, "restore it from a copy") == content


def config_content(composed: DictConfig) -> str:
    """What config.yaml holds, by which configs are told apart."""
    record = to_record(composed, without=("run_folder", "resume", "trackers"))
    return OmegaConf.to_yaml(OmegaConf.create(record))


def _is_unused(folder: Path, content: str, is_resumed: bool) -> bool:
    """Whether a folder holds no run yet.

    Args:
        folder: of the run.
        content: what its config.yaml would hold.
        is_resumed: whether the config was composed from what the run recorded.

    Raises:
        ConfigError: when it holds another one or something else.
    """
    path = folder / CONFIG
    if path.exists():
        # earlier versions did not record the methods
        earlier = content[: content.rfind("\nmethods:\n") + 1]
        if read_text(path, "restore it from a copy, or choose another run_folder") not in (content, earlier):
            raise ConfigError(
                f"the run folder {folder} cannot be continued: from the options that it was begun with, this version composes "
                f"another config than its {CONFIG}, which another version wrote or which was edited; finish it with that "
                "version, or begin anew in another run_folder"
                if is_resumed
                else f"the run folder {folder} belongs to another config (its {CONFIG} differs from this run's); choose another "
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
