"""A command says something at once: what takes seconds to import waits until the config is known to be sound."""

import re
import subprocess
import sys

SESSION = """
import signal, sys
from hydra.core.global_hydra import GlobalHydra
from selfprune.__main__ import main

sys.argv = ["selfprune", "budget.sparsity=1.5"]
assert main() == 2
slow = {"transformers", "accelerate", "huggingface_hub", "lm_eval", "datasets", "scipy.optimize", "sympy", "matplotlib", "optuna"}
print(*sorted(slow & set(sys.modules)), file=sys.stderr)
GlobalHydra.instance().clear()

class Library:
    def find_spec(name, *_):
        if name == "selfprune.runs.run":
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                pass  # as libraries do while they are imported

sys.meta_path.insert(0, Library)
sys.argv = ["selfprune"]
main()
"""


def test_a_sound_config_is_told_before_its_libraries_are_imported_and_a_mistake_without_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFPRUNE_LOG", "INFO")
    done = subprocess.run([sys.executable, "-c", SESSION], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    mistake, *imported, begun, stopped = done.stderr.splitlines()
    assert mistake.startswith("selfprune: budget.sparsity must lie above 0 and below 1, got 1.5")
    assert imported[-1] == ""
    assert re.fullmatch(r"\d\d:\d\d:\d\d importing the libraries of models and tasks", begun)
    assert (done.returncode, stopped) == (130, "selfprune: interrupted; the run had not begun")
    assert list(tmp_path.iterdir()) == []
