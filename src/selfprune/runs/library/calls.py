"""What `from selfprune import ...` gives: the commands as functions of a model in memory.

    from selfprune import prune_model, search_allocation

    found = search_allocation(model, tokenizer, calibration=texts, search=texts, report=unseen, sparsity=0.5)
    pruned = prune_model(model, tokenizer, found, calibration=texts, options=["pruner=sparsegpt"])

They do what the commands do, with the same configs, and raise `SelfpruneError` where those end with exit code 2. A model in
memory is written to a temporary folder first, so that there must be room for it on disk.
"""

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from omegaconf import DictConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfprune.configs.choices import brought_along
from selfprune.configs.command_line import set_up
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import PruneConfig, to_config
from selfprune.configs.path_options import written
from selfprune.errors import ConfigError
from selfprune.runs.composed_run import run_composed
from selfprune.runs.library.results import Pruned, Run
from selfprune.runs.prune_once import prune_once
from selfprune.runs.showing.display import Listener, heard

Texts = str | Path | Sequence[str]
"""A text file or a folder of them, or the texts themselves."""
DTYPES = {"torch.float32": "FLOAT32", "torch.bfloat16": "BFLOAT16", "torch.float16": "FLOAT16"}


def load_run(folder: str | Path) -> Run:
    """A finished run.

    Args:
        folder: of the run.

    Raises:
        ConfigError: when it holds none.
    """
    return Run.read(Path(folder))


def search_allocation(
    model: PreTrainedModel | str = "embedded",
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    calibration: Texts | None = None,
    search: Texts | None = None,
    report: Texts | None = None,
    sparsity: float | None = None,
    options: Sequence[str] = (),
    folder: str | Path | None = None,
    on_progress: Listener | None = None,
    quiet: bool = True,
) -> Run:
    """Searches where a model should be pruned, prunes it so, and measures it beside controls, as `python -m selfprune` does.

    Args:
        model: in memory, which is not changed; or a folder, a hub id or `embedded`.
        tokenizer: of the model in memory.
        calibration: texts that the pruner is calibrated on; needed for every model but the embedded one, as the next two are.
        search: texts that candidates are scored on.
        report: texts that only the report is measured on.
        sparsity: `budget.sparsity`.
        options: further options, as on the command line: `["pruner=sparsegpt", "search.max_tokens=50000"]`.
        folder: of the run, by which it is continued, too; a temporary one, which stays, when None.
        on_progress: called with stage, share that is done (None where unknown) and a note, while it works.
        quiet: whether the error stream tells no stages.

    Raises:
        SelfpruneError: on a user's mistake.
    """
    place = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="selfprune-")) / "run"
    texts = {"calibration": calibration, "search": search, "report": report}
    with ExitStack() as stack:
        given = [*_sources(stack, model, tokenizer, texts), *_asked(sparsity, options), f"run_folder={written(str(place))}"]
        if model != "embedded" and not any(option.startswith("harness=") for option in options):
            given.append("harness=none")
        composed, overrides = stack.enter_context(_composed("config", given))
        stack.enter_context(heard(on_progress, quiet))
        if quiet:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        return Run.read(run_composed(composed, overrides))


def prune_model(
    model: PreTrainedModel | str = "embedded",
    tokenizer: PreTrainedTokenizerBase | None = None,
    allocation: Run | str | None = None,
    *,
    calibration: Texts | None = None,
    sparsity: float | None = None,
    options: Sequence[str] = (),
    folder: str | Path | None = None,
    on_progress: Listener | None = None,
    quiet: bool = True,
) -> Pruned:
    """Prunes a model to one allocation, without a search, as `python -m selfprune.prune` does.

    Args:
        model: in memory, which is not changed; or a folder, a hub id or `embedded`.
        tokenizer: of the model in memory.
        allocation: a run, whose winner's it is, or the name of a closed form; uniform when None.
        calibration: texts that the pruner is calibrated on; needed for every model but the embedded one.
        sparsity: `budget.sparsity`, where the allocation is none of a run.
        options: further options, as on the command line.
        folder: for the checkpoint; a temporary one, which stays, when None.
        on_progress: called with stage, share that is done (None where unknown) and a note, while it works.
        quiet: whether the error stream tells no stages.

    Raises:
        SelfpruneError: on a user's mistake.
    """
    place = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="selfprune-")) / "model"
    chosen = str(allocation.folder) if isinstance(allocation, Run) else allocation
    with ExitStack() as stack:
        given = [*_sources(stack, model, tokenizer, {"calibration": calibration}), *_asked(sparsity, options)]
        given += [f"output={written(str(place))}", *([f"allocation={written(str(chosen))}"] if chosen else [])]
        composed, _ = stack.enter_context(_composed("prune", given))
        stack.enter_context(heard(on_progress, quiet))
        return Pruned.read(prune_once(to_config(composed, PruneConfig), composed))


def _sources(
    stack: ExitStack,
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | None,
    texts: dict[str, Texts | None],
) -> list[str]:
    """The options that name model and texts, of which those in memory are written to a folder that is removed at the end."""
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="selfprune-")))
    if isinstance(model, str):
        named = (
            []
            if model == "embedded"
            else [f"model={'local' if Path(model).exists() else 'hub'}", f"model.path={written(str(model))}"]
        )
    else:
        if tokenizer is None:
            raise ConfigError(
                "a model in memory needs its tokenizer, got none; give tokenizer=AutoTokenizer.from_pretrained(...)"
            )
        model.save_pretrained(scratch / "model")
        tokenizer.save_pretrained(str(scratch / "model"))
        dtype = DTYPES.get(str(model.dtype), "AUTO")
        named = ["model=local", f"model.path={written(str(scratch / 'model'))}", f"model.dtype={dtype}"]
    missing = [split for split, given in texts.items() if given is None]
    if len(missing) == len(texts) and not named:
        return named
    if missing:
        raise ConfigError(f"a model of your own needs texts for {' and '.join(texts)}, got none for {' and '.join(missing)}")
    return [
        *named,
        "data=files",
        *(f"data.{split}={written(str(_file(scratch, split, given)))}" for split, given in texts.items()),
    ]


def _file(scratch: Path, split: str, texts: Texts | None) -> Path:
    """The file of a split's texts."""
    assert texts is not None
    if isinstance(texts, str | Path):
        return Path(texts)
    path = scratch / f"{split}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def _asked(sparsity: float | None, options: Sequence[str]) -> list[str]:
    return [*([] if sparsity is None else [f"budget.sparsity={sparsity}"]), *options]


@contextmanager
def _composed(config_name: str, overrides: list[str]) -> Iterator[tuple[DictConfig, list[str]]]:
    """While open, Hydra is ours, whatever application we are called from; gives the config and its overrides."""
    set_up()
    before = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            every = [*overrides, *brought_along(config_name, overrides)]
            yield compose(config_name, overrides=every), every
    finally:
        Singleton.set_state(before)
