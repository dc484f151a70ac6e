"""The README's commands are read alike by bash and an interactive zsh, and name options that there are."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import selfprune.runs.latency_measurement  # noqa: F401 - registers the schema of its config
from selfprune.configs.choices import brought_along
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import register_schemas

README = (Path(__file__).parents[1] / "README.md").read_text()
OUTSIDE_BLOCKS = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
BLOCKS = [
    *re.findall(r"^    (\S(?:.*\\\n)*.*)", OUTSIDE_BLOCKS, re.MULTILINE),
    *(line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()),
]
INLINE = re.findall(r"`((?:python|make|pip|selfprune|'?\+|'?[a-z_.]+=)[^`\n]*)`", OUTSIDE_BLOCKS)
CONFIGS = {"selfprune": "config", "selfprune.prune": "prune", "selfprune.latency": "latency"}
WITHOUT_CONFIG = tuple(f"python -m selfprune.{name}" for name in ("inspect", "gguf", "sweep", "compare", "watch"))
# These have no config, and the pruner in three steps is tried where it is written (test_methods).
COMMANDS = [
    shlex.split(block.replace("\\\n", " "))[2:]
    for block in BLOCKS
    if block.startswith("python -m ") and not block.startswith(WITHOUT_CONFIG) and "=mine" not in block
]


@pytest.mark.parametrize("command", [*BLOCKS, *INLINE])
def test_a_command_holds_nothing_that_a_shell_would_take_for_its_own(command):
    """An interactive zsh takes a comment for arguments, and a bracket or brace for a pattern of file names."""
    unquoted = re.sub(r"'[^']*'|\"[^\"$`\\]*\"", "", command.replace("\\\n", " "))
    assert set(unquoted.replace(" && ", " ")) & set("#[]{}()*?!~$;<>|&\\'\"`") == set()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_names_options_and_choices_that_there_are(command):
    name, *overrides = command
    if "-m" in overrides:
        overrides = [each.partition(",")[0] for each in overrides if each != "-m"]
    register_schemas()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        compose(CONFIGS[name], overrides=[*overrides, *brought_along(CONFIGS[name], overrides)])


def test_the_commands_of_the_readme_are_found():
    assert {"make run", "make test", "python -m selfprune", "python -m selfprune.inspect FOLDER --speed"} <= {*BLOCKS}
    assert {name for name, *_ in COMMANDS} == {*CONFIGS}
    assert "python -m selfprune --cfg job" in INLINE
