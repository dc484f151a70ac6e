"""README and manual: bash and an interactive zsh read their commands alike, the options exist, and links lead somewhere."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import selfprune.runs.latency_measurement  # noqa: F401 - registers the schema of its config
from selfprune.configs.choices import brought_along
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import register_schemas

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n\n".join(page.read_text() for page in PAGES)
OUTSIDE_BLOCKS = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
INDENTED = re.findall(r"^    (\S(?:.*\\\n)*.*)", OUTSIDE_BLOCKS, re.MULTILINE)
IN_FENCES = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
BLOCKS = sorted({*INDENTED, *IN_FENCES})
INLINE = re.findall(r"`((?:python|make|pip|selfprune|'?\+|'?[a-z_.]+=)[^`\n]*)`", OUTSIDE_BLOCKS)
CONFIGS = {"selfprune": "config", "selfprune.prune": "prune", "selfprune.latency": "latency"}
WITHOUT_CONFIG = tuple(f"python -m selfprune.{name}" for name in ("inspect", "gguf", "sweep", "cliff", "compare", "watch"))
# These have no config, and the pruner in three steps is tried where it is written (test_methods).
COMMANDS = [
    shlex.split(block.replace("\\\n", " "))[2:]
    for block in BLOCKS
    if block.startswith("python -m ") and not block.startswith(WITHOUT_CONFIG) and "=mine" not in block
]


@pytest.mark.parametrize("command", sorted({*BLOCKS, *INLINE}))
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


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "experiments").rglob("*.md"))], ids=str)
def test_links_within_the_repository_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.slow
def test_the_manual_is_built_without_a_warning_and_asks_no_host_for_anything(tmp_path):
    for name in ("docs", "experiments", "notebooks"):  # the pages of the reference are generated beside the others
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("_build", "generated"))
    shutil.copy(ROOT / "README.md", tmp_path)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", tmp_path / "docs", tmp_path / "site"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    pages = {page.name: page.read_text() for page in (tmp_path / "site").rglob("*.html")}
    assert "pruner.block_width=128" in pages["options.html"]
    assert "SparseGPT: column by column" in pages["selfprune.pruners.weights.sparsegpt.html"]
    assert 'href="studies/log.html"' in pages["results.html"]
    asked = re.compile(r"""<(?:script|img|link)[^>]*(?:src|href)=["'](?:https?:)?//""")
    assert [name for name, page in pages.items() if asked.search(page)] == []
