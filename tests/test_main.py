"""Wrong input: one paragraph, exit code 2, nothing half-written."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from selfprune.__main__ import main
from selfprune.configs.command_line import guarded
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import register_schemas
from selfprune.configs.mistakes.command_mistakes import mistake_of
from selfprune.configs.mistakes.override_mistakes import CommandLine
from selfprune.errors import ModelError
from selfprune.runs.composed_run import run_composed

WRONG = {
    "added key": (["+pruner.exponent=2"], "there is no option pruner.exponent"),
    "added group": (["+experimnt=smoke"], "experimnt"),
    "launcher that is not installed": (
        ["-m", "hydra/launcher=rq"],
        "install it with pip install hydra-rq-launcher",
    ),
    "sparsity of one": (["budget.sparsity=1.0"], "budget.sparsity must lie above 0 and below 1, got 1.0"),
    "negative sparsity": (["budget.sparsity=-0.1"], "budget.sparsity must lie above 0 and below 1, got -0.1"),
    "sparsity of zero": (["budget.sparsity=0"], "budget.sparsity=0 leaves nothing to prune, and so nothing to search"),
    "ladder that falls": (["search.ladder.n_windows=[8,4,64]"], "rising n_windows"),
    "ladder beyond the split": (["data.n_search=16"], "search windows"),
    "pattern": (["pruner.pattern=4:2"], "4:2"),
    "missing folder": (["model=local", "model.path=./no/such/model"], "no/such/model"),
    "model without path": (["model=local"], "path"),
    "hub id offline": (["model=hub", "model.path=someone/some-model"], "someone/some-model"),
    "model from disk": (["model.placement=STREAM"], "a search needs the whole model at hand, but model.placement=STREAM"),
    "calibration text alone": (["data=files", "data.calibration=a.txt"], "but data.report is empty"),
    "model of a name too long": (["model=local", f"model.path={'x' * 300}"], "xxx cannot be used: File name too long; correct"),
    "run of a name too long": (["proposer=stored", f"proposer.run_folder={'x' * 300}"], "cannot be used: File name too long"),
    "missing text": (["data=files", "data.calibration=no.txt", "data.search=no.txt", "data.report=no.txt"], "no.txt"),
    "empty text": (["data=files", "data.calibration=empty.txt", "data.search=empty.txt", "data.report=empty.txt"], "empty.txt"),
    "short text": (["data=files", "data.calibration=short.txt", "data.search=short.txt", "data.report=short.txt"], "short.txt"),
    "hub data offline": (["data=c4", "data.n_tokens_per_window=64"], "data=files"),
    "resume without a folder": (["resume="], "resume must name the folder of a run that was begun, got nothing"),
    "resume of nothing": (["resume=nowhere"], "nowhere"),
    "endpoint out of reach": (
        ["language_model=openai_compatible", "language_model.base_url=http://localhost:1/v1"],
        "must be an endpoint that can be reached",
    ),
    "script that is missing": (["language_model=scripted", "language_model.path=no.jsonl"], "no.jsonl"),
    "language model without path": (["language_model=local"], "language_model.path must be a folder"),
    "missing language model": (
        ["language_model=local", "language_model.path=./no/such/model"],
        "/no/such/model: there is no folder",
    ),
    "an arm that is a text": (["+proposer.arms.random=random"], "added as in +proposer@proposer.arms.random=random"),
    "an arm without its share": (["~proposer.arms.self_pruner"], "an arm is left out by a share of 0"),
    "key that is not set": (
        ["language_model=openai_compatible", "language_model.key_variable=NO_SUCH"],
        "must name an environment variable that is set, but none of the given name is; export the key under that name",
    ),
}


# One of every kind goes through the command, which composes several times over; the others begin where its job does.
BY_THE_COMMAND = (
    "added key", "added group", "launcher that is not installed", "sparsity of one", "missing folder", "short text",
    "resume of nothing", "an arm that is a text", "an arm without its share",
)  # fmt: skip


@pytest.fixture
def job(monkeypatch, capsys, tmp_path):
    """Does what the command does once its overrides are composed, in an empty folder; returns exit code, output and errors."""
    register_schemas()

    def call(*overrides):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            composed = compose("config", overrides=list(overrides))
        code = guarded(lambda: run_composed(composed, list(overrides)), explained, str)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def selfprune(monkeypatch, capsys, tmp_path):
    """Runs the program in this process, in an empty folder; returns exit code, output and errors."""

    def call(*overrides):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["selfprune", *overrides])
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        code = main()
        GlobalHydra.instance().clear()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def check_paragraph(result, expected):
    code, out, err = result
    said = " ".join(err.split())
    assert code == 2, said
    assert "Traceback" not in said
    assert said.startswith("selfprune: ")
    assert said.count("selfprune: ") == 1
    assert expected in said
    assert out == ""


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_in_one_paragraph_and_leaves_nothing(name, tmp_path, selfprune, job):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("The boats near the old soldiers tremble. " * 20)
    before = sorted(tmp_path.iterdir())
    overrides, expected = WRONG[name]
    check_paragraph((selfprune if name in BY_THE_COMMAND else job)(*overrides), expected)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_of_another_config_is_refused_and_left_alone(tmp_path, selfprune):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 5\n")
    check_paragraph(selfprune("run_folder=run"), "belongs to another config")
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    assert (folder / "config.yaml").read_text() == "seed: 5\n"


def test_a_folder_of_other_things_is_refused(tmp_path, selfprune):
    (tmp_path / "thesis.tex").write_text("x")
    check_paragraph(selfprune("run_folder=."), "holds other things")


def test_an_unknown_architecture_is_refused(tmp_path, selfprune):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "no_such_architecture"}')
    check_paragraph(selfprune("model=local", "model.path=model", "run_folder=run"), "no_such_architecture")


def test_a_mistake_ends_the_process_with_exit_code_2(python, tmp_path):
    done = python("-m", "selfprune", "budget.sparsity=1.2", folder=tmp_path)
    check_paragraph((done.returncode, done.stdout, done.stderr), "got 1.2")


def explained(error):
    return mistake_of(error, lambda: CommandLine("config"))


def interrupt_in_native_code():
    """What remains of an interrupt that a library met in native code."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("error", [ValueError("could not determine the shape"), ModelError("reading the weights failed"), None])
def test_an_interrupt_is_told_whatever_error_a_library_makes_of_it(error, capsys):
    def work():
        interrupt_in_native_code()
        raise error or KeyboardInterrupt("somewhere")

    def told(interrupt):
        return f"left {'in '.join(('', *interrupt.args))}".rstrip()

    before = signal.getsignal(signal.SIGINT)
    assert guarded(work, explained, told) == 130
    assert capsys.readouterr().err == f"selfprune: interrupted; left{'' if error else ' in somewhere'}\n"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("error", [ValueError("a defect"), KeyError("a defect"), SystemExit(3)])
def test_a_defect_is_not_told_as_a_mistake(error):
    def work():
        raise error

    with pytest.raises(type(error)) as raised:
        guarded(work, explained, str)
    assert raised.value is error


def test_an_interrupt_of_earlier_work_does_not_turn_a_mistake_into_one(capsys):
    assert guarded(interrupt_in_native_code, explained, str) == 0

    def work():
        raise ModelError("no such model")

    assert guarded(work, explained, str) == 2
    assert capsys.readouterr().err == "selfprune: no such model\n"


def test_an_unknown_log_level_is_told(monkeypatch, capsys):
    monkeypatch.setenv("SELFPRUNE_LOG", "loud")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "SELFPRUNE_LOG must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, got LOUD" in " ".join(
        capsys.readouterr().err.split()
    )


def test_every_option_can_be_shown(selfprune):
    code, out, _ = selfprune("--cfg", "job")
    assert code == 0
    for option in ("budget:", "ladder:", "shares:", "n_tokens_per_window: 256"):
        assert option in out


@pytest.mark.skipif(not os.path.exists("/proc/mounts") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, selfprune):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        check_paragraph(selfprune("+experiment=smoke", "run_folder=disk/run"), "GB free")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
