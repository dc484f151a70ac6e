"""What `python -m selfprune.gguf` does: it writes a checkpoint as one file for llama.cpp, whole or not at all."""

import sys
from collections.abc import Sequence
from pathlib import Path

from selfprune.checkpoints.reader import Checkpoint
from selfprune.configs.plain_command import PlainParser, exit_code
from selfprune.errors import ConfigError
from selfprune.exports.gguf_file import write_gguf
from selfprune.storage.whole_files import disk_error


def convert(command: str, arguments: Sequence[str]) -> int:
    """Writes a checkpoint as GGUF.

    Args:
        command: how it is called.
        arguments: of the command line: the folder of a checkpoint, and a new file.

    Returns:
        the exit code: 0, or 2 for a user's mistake, told in one paragraph.
    """
    parser = PlainParser(command, "FOLDER FILE", "Writes a Llama, cut or not, as one GGUF file for llama.cpp.")
    parser.add_argument("folder", type=Path, help="holds config.json, safetensors and the tokenizer")
    parser.add_argument("file", type=Path, help="a new file")

    def work() -> None:
        options = parser.parse_args(arguments)
        path = options.file.expanduser()
        _convert(Checkpoint(options.folder.expanduser()), path)
        sys.stdout.write(f"{options.file}: {path.stat().st_size:,} bytes\n")

    return exit_code(work)


def _convert(checkpoint: Checkpoint, path: Path) -> None:
    if path.exists() or not path.parent.is_dir():
        raise ConfigError(f"{path} must be a new file in a folder that exists; give another")
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        write_gguf(checkpoint, unfinished)
        unfinished.rename(path)
    except OSError as error:
        raise disk_error(path, error, "give another file") from error
    finally:
        unfinished.unlink(missing_ok=True)
