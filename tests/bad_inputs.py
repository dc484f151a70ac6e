"""Generated bad inputs for the real commands, in this process: overrides, recorded files, checkpoints, texts, replies.

python tests/bad_inputs.py 1000 --seed 0      # tells every breach with its seed; exits 1 where there is one
python tests/bad_inputs.py --only 417         # one case again, with what it said

Each case copies a small workspace (a tiny model, a finished and a broken-off run, a pruning that was broken off, texts, a latency
table), breaks one thing in it, and runs one command. It must end without a traceback, with exit code 2 and one paragraph or with
exit code 0; and whatever lay in the workspace must lie there still, byte for byte, but for journals, which may have grown.
Left out are sizes that would only make outside software take all memory or time.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "language_models")]
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

from fake_endpoint import Raw, completion, serving  # noqa: E402

from selfprune import __main__ as run_command  # noqa: E402
from selfprune import inspect as inspect_command  # noqa: E402
from selfprune import prune as prune_command  # noqa: E402

COMMANDS = {"run": run_command.run, "prune": prune_command.main, "inspect": inspect_command.main}
MODEL = ["model=local", "model.path=model", "model.device=cpu"]
SMALL = [*MODEL, "data.n_tokens_per_window=32", "data.n_calibration=2", "budget.sparsity=0.5"]
RUN = [
    "+experiment=smoke", *SMALL, "data.n_search=4", "data.n_report=2", "search.ladder.n_windows=[2,4]", "harness=none",
    "search.max_tokens=1500", "search.n_per_round=2", "search.max_candidates=6", "search.max_seconds=600", "~controls.random",
    "proposer=self_pruner", "proposer.n_coefficient_calls=1", "proposer.n_replies_per_call=1", "proposer.n_windows=2",
    "language_model.max_reply_tokens=20",
]  # fmt: skip
PRUNE = [*SMALL, "output=pruned"]
JOURNALS = ("archive.jsonl", "evaluations.jsonl", "language_model_calls.jsonl")
RESULTS = (
    "report.html", "report.json", "report.md", "table.csv", "table.tex",
    "progress.png", "sparsity.png", "widths.png", "pareto.png",
)  # fmt: skip
DEEP = "@deep@"
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 5, 1.5, -0.5, 1e301, float("nan"), float("inf"), 10**30, "", "x", "é\ud800", "\0", "x" * 5000,
    [], {}, [[]], [None], {"x": 1}, ["x", 1], DEEP,
]  # fmt: skip
TINY_ODD: list[Any] = [None, True, -1, 0, 3, 1.5, "", "x", [], {}, ["x"], {"x": 1}, DEEP]
"""For files that outside software reads, without sizes that it would believe."""


@dataclass
class Case:
    """What one command was given and how it ended."""

    kind: str
    command: str
    arguments: list[str]
    may_change: tuple[str, ...] = ()
    answer: Callable[[int, Any], Any] | None = None
    models: Any = None
    code: int | None = None
    said: str = ""
    breaches: list[str] = field(default_factory=list)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """While open, a folder is the current one."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def call(case: Case, seconds: int) -> None:
    """Runs the command of a case in the current folder, for so many seconds at most, or without a limit for 0."""
    from hydra.core.global_hydra import GlobalHydra

    said = io.StringIO()
    log = logging.StreamHandler(said)
    handlers, logging.getLogger().handlers[:] = logging.getLogger().handlers[:], [log]

    def out_of_time(*_: object) -> None:
        raise TimeoutError(f"nothing came within {seconds} s")

    if seconds:
        signal.signal(signal.SIGALRM, out_of_time)
        signal.alarm(seconds)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            case.code = COMMANDS[case.command](case.arguments)
    except SystemExit as ended:
        case.code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # whatever comes out is a breach
        said.write(traceback.format_exc())
    finally:
        if seconds:
            signal.alarm(0)
        logging.getLogger().handlers[:] = handlers
        GlobalHydra.instance().clear()
    case.said = said.getvalue()


def make_workspace(folder: Path) -> None:
    """Fills a folder with everything that cases break."""
    from importlib.resources import files

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(files("selfprune.embedded").joinpath("weights")))
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
    about = {"vocab_size": len(tokenizer), "num_key_value_heads": 1, "max_position_embeddings": 2048, "tie_word_embeddings": True}
    config = AutoConfig.for_model("llama", **sizes, **about)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "model", max_shard_size="20KB")
    tokenizer.save_pretrained(folder / "model")
    (folder / "text.txt").write_text("The boats near the old soldiers tremble. " * 400)
    (folder / "text.jsonl").write_text(json.dumps({"text": "The boats near the old soldiers tremble. " * 50}) + "\n" * 1)
    with inside(folder):
        for case in (Case("", "run", [*RUN, "run_folder=run"]), Case("", "prune", [*PRUNE])):
            call(case, 0)
            assert case.code == 0, case.said
        _break_off(folder)
    kinds = [
        f"{part}_proj" for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    ]
    seconds = {kind: [[0, 2.0], [0.5, 1.5], [0.9, 1.0]] for kind in kinds}
    (folder / "table.json").write_text(json.dumps({"measured": {"dtype": "float32", "n_tokens": 8}, "seconds": seconds}))


def _break_off(folder: Path) -> None:
    """A run that was killed before its winner was measured, and a pruning that was killed before it was published."""
    shutil.copytree(folder / "run", folder / "broken")
    for name in ("report.json", "report.md"):
        (folder / "broken" / name).unlink()
    for name in ("archive.jsonl", "evaluations.jsonl"):
        lines = (folder / "broken" / name).read_bytes().splitlines(keepends=True)
        (folder / "broken" / name).write_bytes(b"".join(lines[:-2]))
    shutil.rmtree(folder / "pruned")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    from selfprune.exports.block_writer import BlockWriter

    finish, BlockWriter.finish = BlockWriter.finish, stop
    call(Case("", "prune", PRUNE), 0)
    BlockWriter.finish = finish
    assert (folder / "pruned.partial" / "progress.safetensors").exists()


def broken_json(value: Any, rng: random.Random, odd: list[Any]) -> Any:
    """A value with one thing in it that does not belong there, or lacks."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        change = rng.choice(["within", "within", "drop", "add"])
        if change == "within":
            return value | {name: broken_json(value[name], rng, odd)}
        return {k: v for k, v in value.items() if k != name} if change == "drop" else value | {"x": rng.choice(odd)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        i = rng.randrange(len(value))
        return rng.choice([value[:i], [*value, value[i]], [*value[:i], broken_json(value[i], rng, odd), *value[i + 1 :]]])
    return rng.choice(odd)


def dumped(value: Any) -> str:
    return json.dumps(value).replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000)


def break_json(path: Path, rng: random.Random, odd: list[Any]) -> None:
    path.write_text(dumped(broken_json(json.loads(path.read_text()), rng, odd)))


def break_line(path: Path, rng: random.Random) -> None:
    """Breaks one line of a file of JSON lines."""
    lines = path.read_text().splitlines()
    i = rng.randrange(len(lines))
    whole = json.loads(lines[i])
    lines[i] = dumped(rng.choice([rng.choice(ODD), broken_json(whole, rng, ODD), broken_json(whole, rng, ODD)]))
    change = rng.choice(["", "", "", "", "twice", "gone", "blank", "shuffle"])
    if change == "shuffle":
        rng.shuffle(lines)
    lines[i : i + 1] = {"twice": [lines[i]] * 2, "gone": [], "blank": ["", lines[i]]}.get(change, lines[i : i + 1])
    path.write_text("".join(line + "\n" for line in lines))


def break_bytes(path: Path, rng: random.Random) -> None:
    """Breaks a file whatever it holds."""
    content = path.read_bytes()
    cut = rng.randrange(max(1, len(content)))
    change = rng.choice(["cut", "cut", "empty", "bytes", "folder", "gone", "mark", "other", "link"])
    if change in ("folder", "gone", "link"):
        path.unlink()
    if change == "folder":
        path.mkdir()
    elif change == "link":
        path.symlink_to("nowhere")
    elif change != "gone":
        broken = {"cut": content[:cut], "empty": b"", "mark": b"\xef\xbb\xbf" + content, "other": b"\xff\x00[5"}
        path.write_bytes(broken.get(change, content[:cut] + b"\xff\xfe" + content[cut:]))


def break_tensors(path: Path, rng: random.Random) -> None:
    """Breaks the header, the length or the numbers of a safetensors file."""
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + n]), content[8 + n :]
    change = rng.choice(["header", "header", "length", "numbers", "zeros", "bytes"])
    if change == "bytes":
        break_bytes(path, rng)
    elif change == "header":
        made = dumped(broken_json(header, rng, TINY_ODD)).encode()
        path.write_bytes(len(made).to_bytes(8, "little") + made + data)
    elif change == "length":
        path.write_bytes(rng.choice([0, 1, n - 1, n + 8, 10**6]).to_bytes(8, "little") + content[8:])
    else:
        number = {"zeros": b"\0\0\0\0", "numbers": rng.choice([b"\xff\xff\xff\x7f", b"\x00\x00\x80\x3f", b"\xff\xff\x7f\x7f"])}[
            change
        ]
        path.write_bytes(content[: 8 + n] + (number * (len(data) // 4 + 1))[: len(data)])


def in_run_folder(rng: random.Random) -> Case:
    """A file of a run folder that a resumed run, a pruning or another run reads."""
    run = rng.choice(["run", "broken"])
    present = [name for name in (*JOURNALS, "environment.json", "config.yaml", "report.json") if (Path(run) / name).exists()]
    name = rng.choice(present)
    path = Path(run) / name
    if rng.random() < 0.25 or name == "config.yaml":
        break_bytes(path, rng)
    elif name in JOURNALS:
        break_line(path, rng)
    else:
        break_json(path, rng, ODD)
    grown = tuple(f"{run}/{journal}" for journal in (*JOURNALS, *RESULTS))
    if run == "run" and name in ("archive.jsonl", "report.json") and rng.random() < 0.5:
        return Case(f"{name} as allocation", "prune", [*PRUNE[:-1], "output=made", "allocation=run"])
    if run == "run" and name == "language_model_calls.jsonl" and rng.random() < 0.3:
        return Case("script", "run", [*RUN, "run_folder=made", "language_model=scripted", f"language_model.path={path}"])
    return Case(f"{name} of a run", "run", [f"resume={run}"], (*grown, f"{run}/model"))


def in_checkpoint(rng: random.Random) -> Case:
    """A file of the model that is pruned or inspected."""
    folder = Path("model")
    path = rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    if path.suffix == ".safetensors":
        break_tensors(path, rng)
    elif path.suffix == ".json" and rng.random() < 0.7:
        break_json(path, rng, TINY_ODD)
    else:
        break_bytes(path, rng)
    kind = "weights" if path.suffix == ".safetensors" else path.name
    if rng.random() < 0.4:
        return Case(f"{kind}, inspected", "inspect", ["model", *(["--json"] if rng.random() < 0.5 else [])])
    return Case(f"{kind}, pruned", "prune", [*PRUNE[:-1], "output=made"])


def in_pruning(rng: random.Random) -> Case:
    """A file of a pruning that was broken off."""
    path = rng.choice([Path("pruned.partial/progress.safetensors"), rng.choice(sorted(Path("pruned.partial").glob("model-*")))])
    if path.name.startswith("progress") and rng.random() < 0.6:
        content = path.read_bytes()
        n = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + n])
        about = json.loads(header["__metadata__"]["progress"])
        header["__metadata__"]["progress"] = dumped(broken_json(about, rng, ODD)).encode(errors="replace").decode()
        made = json.dumps(header).encode()
        path.write_bytes(len(made).to_bytes(8, "little") + made + content[8 + n :])
    else:
        break_tensors(path, rng)
    return Case("a pruning broken off", "prune", PRUNE, ("pruned.partial", "pruned"))


OPTIONS = [
    "budget.sparsity", "budget.measure", "budget", "seed", "model.dtype", "model.device", "model.placement", "model.path",
    "model.revision", "data",
    "data.calibration", "data.n_calibration", "data.n_tokens_per_window", "data.bos", "pruner", "pruner.pattern", "pruner.scope",
    "allocation", "output", "budget.latency_table", "budget.n_tokens", "hydra.run.dir", "pruner.mine", "x",
]  # fmt: skip
VALUES = [
    "null", "true", "-1", "0", "1", "0.999999", "2", "1e400", "nan", "inf", "x", "é", "[1,2]", "[", "{a:1}", "{",
    "'", '"', "${seed}", "${nothing}", "???", "a=b", "~/x", "(", "wanda", "2:4", "4:2", "0:0", "nowhere/x",
    "model", "text.txt", "run", "\\", "#",
    "", "a b", "x" * 300,
]  # fmt: skip
RUN_OPTIONS = [
    "search", "search.ladder.n_windows", "search.max_tokens", "proposer", "evaluator", "objective.text", "run_folder", "resume",
]  # fmt: skip


def in_overrides(rng: random.Random) -> Case:
    """Options and values that somebody might type."""
    sign = rng.choice(["", "", "", "", "+", "++", "~"])
    given = [f"{sign}{rng.choice(OPTIONS)}={rng.choice(VALUES)}" for _ in range(rng.choice([1, 1, 2]))]
    if rng.random() < 0.1:
        given.append(rng.choice(["budget.sparsity", "=", "-x", "--cfg", "pruner=wanda pruner=ria", "+experiment=nothing", "-m"]))
    if rng.random() < 0.3:
        return Case(
            "overrides of a run", "run", [*RUN, "run_folder=run", f"{rng.choice(RUN_OPTIONS)}={rng.choice(VALUES)}", *given]
        )
    return Case("overrides of a pruning", "prune", [*PRUNE[:-1], "output=made", *given])


def in_texts(rng: random.Random) -> Case:
    """A text that is pruned by."""
    path = Path(rng.choice(["text.txt", "text.jsonl"]))
    if path.suffix == ".jsonl" and rng.random() < 0.6:
        break_line(path, rng)
    else:
        break_bytes(path, rng)
    if rng.random() < 0.2:
        path = (
            path.rename(path.with_suffix(rng.choice([".json", ".gz", ".md", ".parquet", ""]))) if os.path.lexists(path) else path
        )
    return Case("texts", "prune", [*PRUNE[:-1], "output=made", "data=files", f"data.calibration={path}"])


def in_latency_table(rng: random.Random) -> Case:
    """A latency table."""
    path = Path("table.json")
    break_json(path, rng, ODD) if rng.random() < 0.8 else break_bytes(path, rng)
    budget = ["budget=latency", "budget.latency_table=table.json", "budget.sparsity=0.2"]
    return Case("latency table", "prune", [*PRUNE[:-1], "output=made", *budget])


def in_endpoint(rng: random.Random) -> Case:
    """What an endpoint answers."""
    good = completion('{"moves": []}')
    body = rng.choice([lambda: broken_json(good, rng, ODD), lambda: good, lambda: rng.choice(ODD)])()
    raw = rng.choice(
        [dumped(body).encode(errors="replace"), b"", b"\xff\xfe", b"<html>", dumped(good).encode()[: rng.randrange(40)]]
    )
    status = rng.choice([200, 200, 200, 200, 400, 401, 404, 500, 204, 302])
    models = rng.choice(
        [
            ["m"],
            ["m"],
            ["m"],
            [],
            ["a", "b"],
            Raw(dumped(broken_json({"data": [{"id": "m"}]}, rng, ODD)).encode(errors="replace")),
        ]
    )
    arguments = [
        *[override for override in RUN if not override.startswith("language_model.")], "run_folder=made",
        "language_model=openai_compatible", "language_model.n_attempts=1", "language_model.timeout_seconds=5",
    ]  # fmt: skip
    return Case("endpoint", "run", arguments, answer=lambda i, request: Raw(raw, status), models=models)


KINDS = [
    (in_run_folder, 30),
    (in_checkpoint, 24),
    (in_pruning, 8),
    (in_overrides, 16),
    (in_texts, 8),
    (in_latency_table, 8),
    (in_endpoint, 6),
]


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """Path -> what is there: bytes of a file, target of a link, None for a folder."""

    def what(path: Path) -> bytes | str | None:
        return os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None

    return {path.relative_to(folder).as_posix(): what(path) for path in sorted(folder.rglob("*"))}


def lost(case: Case, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Paths that are gone or hold something else without right."""
    for path, content in before.items():
        if path not in after or after[path] != content:
            free = any(path == one or path.startswith(f"{one}/") for one in case.may_change)
            is_journal = path.endswith(JOURNALS)
            grown = (
                isinstance(after.get(path), bytes)
                and isinstance(content, bytes)
                and after[path].startswith(content[: content.rfind(b"\n") + 1])
            )
            if not (free and (grown if is_journal else case.code == 0)):
                yield path


def judge(case: Case, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Notes what a case breached."""
    paragraphs = [line for line in case.said.splitlines() if line.startswith("selfprune: ")]
    told = [line for line in paragraphs if not line.startswith("selfprune: warning: ")]
    if "Traceback (most recent call last)" in case.said:
        case.breaches.append("traceback: " + case.said.strip().splitlines()[-1][:200])
    elif case.code not in (0, 2):
        case.breaches.append(f"exit code {case.code}")
    elif case.code == 2 and len(told) != 1:
        case.breaches.append(f"{len(told)} paragraphs instead of one: {case.said[:300]!r}")
    elif case.code == 0 and told:
        case.breaches.append(f"exit code 0, but {told[0][:200]!r}")
    case.breaches += [f"lost or changed: {path}" for path in lost(case, before, after)]


def try_case(seed: int, workspace: Path, seconds: int = 100) -> Case:
    """One case from its beginning to its verdict."""
    rng = random.Random(seed)
    make = rng.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "workspace"
        shutil.copytree(workspace, folder, symlinks=True)
        with inside(folder), contextlib.ExitStack() as stack:
            case = make(rng)
            if case.answer:
                endpoint = stack.enter_context(serving())
                endpoint.answer, endpoint.models = case.answer, case.models
                case.arguments.append(f"language_model.base_url={endpoint.url}")
            before = contents(folder)
            call(case, seconds)
        judge(case, before, contents(folder))
    return case


def main() -> int:
    """Tries as many cases as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n_cases", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the others follow")
    parser.add_argument("--only", type=int, help="the seed of a single case, whose output is shown")
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    began, n_breaches = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as scratch:
        make_workspace(Path(scratch))
        seeds = range(options.seed, options.seed + options.n_cases) if options.only is None else [options.only]
        for seed in seeds:
            case = try_case(seed, Path(scratch))
            counts.setdefault(case.kind, Counter())["breach" if case.breaches else str(case.code)] += 1
            n_breaches += bool(case.breaches)
            if case.breaches or options.only is not None:
                print(
                    f"seed {seed}: {case.kind}: {case.command} {' '.join(case.arguments)[-120:]}\n  "
                    + "\n  ".join(case.breaches),
                    flush=True,
                )
            if options.only is not None:
                print(case.said)
    for kind, counted in sorted(counts.items()):
        print(f"{kind:32} {sum(counted.values()):5}: " + ", ".join(f"{n} × {how}" for how, n in sorted(counted.items())))
    print(f"{n_breaches} breaches in {sum(sum(c.values()) for c in counts.values())} cases, {time.monotonic() - began:.0f} s")
    return 1 if n_breaches else 0


if __name__ == "__main__":
    sys.exit(main())
