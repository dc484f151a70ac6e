"""How the suite runs; the fixtures that its tests share are in `shared.py`."""

import gc
import os
import signal

import pytest
from hypothesis import Phase, settings

# Libraries and collected tests stay to the end: nothing in them is garbage (`pytest_collection_finish` goes on from here).
gc.disable()

# A shell that starts a job in the background lets it ignore Ctrl-C; the tests that send one would wait for nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Lines about progress would stand in what a test captures.
os.environ.setdefault("SELFPRUNE_LOG", "WARNING")

# No test survives a loss of power, and none waits for the disk.
os.fsync = lambda _: None

# The same examples every time, and a failing one is told as it was found: smaller ones would be looked for for minutes.
# `pytest --hypothesis-profile=default` draws others and makes the one that fails smaller.
settings.register_profile("suite", derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate], max_examples=60)
settings.load_profile("suite")

# What these build takes so long that one worker should do it for all tests that use it.
BUILT_ONCE = {
    "python", "smoke", "small", "finished", "extended", "transformers_server", "wheel", "everything", "workspace", "tensors",
}  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Leaves the libraries to those that run tests: who only hands them out to workers would import them before these begin."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("shared")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps tests that share a dear fixture on one worker (under `--dist loadgroup`), and begins with them."""
    dear = [item for item in items if isinstance(item, pytest.Function) and not BUILT_ONCE.isdisjoint(item.fixturenames)]
    for item in dear:
        # all that fork from one process with the libraries share it
        item.add_marker(pytest.mark.xdist_group("test_run" if "python" in item.fixturenames else item.module.__name__))
    first = set(dear)
    items.sort(key=lambda item: item not in first)


def pytest_collection_finish() -> None:
    """Leaves what the tests are made of out of every search for garbage: going through it took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(20_000)  # configs make thousands of objects each
    gc.enable()


def pytest_sessionfinish() -> None:
    """Lets the process end: pytest looks five times for garbage in all that is left of the tests."""
    gc.freeze()
