"""What `python -m selfprune.inspect` tells of a checkpoint: its zeros, read from disk, and its speed, if asked for."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selfprune.checkpoints.census import take_census
from selfprune.checkpoints.census_tables import show, to_json
from selfprune.checkpoints.reader import Checkpoint
from selfprune.configs.plain_command import PlainParser, exit_code
from selfprune.errors import ConfigError

if TYPE_CHECKING:
    from selfprune.timing.kernel_speed import KernelSpeed


def inspect_checkpoint(command: str, arguments: Sequence[str]) -> int:
    """Prints what a checkpoint's zeros are, and what torch's kernels make of them.

    Args:
        command: how it is called.
        arguments: of the command line: a folder, and perhaps options.

    Returns:
        the exit code: 0, or 2 for a user's mistake, told in one paragraph.
    """
    parser = PlainParser(command, "FOLDER [--json] [--speed]", "Counts the zeros of a Hugging Face checkpoint on disk.")
    parser.add_argument("folder", type=Path, help="holds config.json and safetensors; a model's folder in the hub's cache too")
    parser.add_argument("--json", action="store_true", help="write one JSON object instead of tables")
    parser.add_argument("--speed", action="store_true", help="load the model, and time it by torch's fastest kernels")
    parser.add_argument("--batch-size", type=int, default=1, help="prompts at once, for --speed")
    parser.add_argument("--context", type=int, default=256, help="tokens of a prompt, for --speed")
    return exit_code(lambda: _inspect(parser.parse_args(arguments)))


def _inspect(options: argparse.Namespace) -> None:
    checkpoint = Checkpoint(options.folder.expanduser())
    speed = _speed(checkpoint.folder, options) if options.speed else None
    census = take_census(checkpoint)
    try:
        if options.json:
            told = to_json(checkpoint, census) | ({} if speed is None else {"speed": [one.as_dict() for one in speed]})
            sys.stdout.write(json.dumps(told, indent=2) + "\n")
        else:
            show(checkpoint, census)
            sys.stdout.write("".join(f"\n{one.sentence()}\n" for one in speed or ()))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (such as `head`) has seen enough; the interpreter must not try to flush to it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _speed(folder: Path, options: argparse.Namespace) -> list["KernelSpeed"]:
    # what is counted alone needs no model, and comes at once
    from selfprune.models.loading import load_model, max_positions
    from selfprune.models.model_config import ModelConfig
    from selfprune.timing.kernel_speed import N_REPEATS, kernel_speed
    from selfprune.timing.workload import Mode, Workload

    loaded = load_model(ModelConfig(str(folder)))
    positions = max_positions(loaded.model)
    if positions is not None and options.context + N_REPEATS + 2 > positions:
        raise ConfigError(
            f"--context {options.context} and the tokens that are written after it do not fit the {positions} positions of "
            f"{folder}; give at most {positions - N_REPEATS - 2}"
        )
    modes = Mode.PREFILL, Mode.DECODE
    return [kernel_speed(loaded.model, Workload(mode, options.batch_size, options.context)) for mode in modes]
