import pytest

from selfprune.report import table_cells
from selfprune.run import mean_accuracy


def test_mean_accuracy_combines_standard_errors_of_independent_tasks():
    tasks = {"a": {"acc": 0.5, "acc_stderr": 0.03}, "b": {"acc": 0.7, "acc_stderr": 0.04}, "c": {"word_perplexity": 3.0}}
    assert mean_accuracy(tasks) == pytest.approx((0.6, 0.025))


def test_a_task_without_a_standard_error_never_decides_the_winner_and_is_shown_as_such():
    tasks = {"a": {"acc": 1.0, "acc_stderr": None}}
    assert mean_accuracy(tasks) == (1.0, float("inf"))
    row = {"name": "dense", "sparsity": 0.0, "kl": -1e-9, "perplexity": 2.0, "tasks": tasks, "n_tokens": 0, "seconds": 0.0}
    _, cells = table_cells({"rows": [row]})
    assert cells[0] == ["dense", "0.00%", "0.0000", "2.000", "100.0 ± –", "0", "0"]
