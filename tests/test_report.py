import pytest

from selfprune.candidate import RE_ENTRY, Candidate, Proposal, State
from selfprune.report import count_by_proposer, table_cells
from selfprune.run import mean_accuracy


def candidate(index, proposer, score, gain=None, state=State.COMPLETE, operator=""):
    proposal = Proposal({"a": 1}, proposer, operator)
    return Candidate(index, "main", proposal, state, score, n_windows=1, n_tokens=10, gain=gain)


def test_a_proposer_wins_when_its_candidate_becomes_the_incumbent():
    candidates = [
        candidate(0, "uniform", 0.5, gain=0.0),
        candidate(1, "random", 0.6),
        candidate(2, "random", 0.1, state=State.STOPPED),
        candidate(3, "random", 0.4, gain=0.125),
        candidate(4, "self_pruner", None, state=State.FAILED),
        candidate(5, "random", 0.5, operator=RE_ENTRY),
        candidate(6, "uniform", 0.3, gain=0.25),
    ]
    counts = count_by_proposer(candidates)
    won = {name: count["won"] for name, count in counts.items()}
    assert won == {"uniform": 2, "random": 1, "self_pruner": 0, "champions again": 0}
    assert counts["random"] == {
        "proposed": 3, "complete": 2, "stopped": 1, "failed": 0, "n_tokens": 30, "won": 1, "gain": 0.125,
        "gain_per_million_tokens": pytest.approx(1e6 * 0.125 / 30),
    }  # fmt: skip


def test_mean_accuracy_combines_standard_errors_of_independent_tasks():
    tasks = {"a": {"acc": 0.5, "acc_stderr": 0.03}, "b": {"acc": 0.7, "acc_stderr": 0.04}, "c": {"word_perplexity": 3.0}}
    assert mean_accuracy(tasks) == pytest.approx((0.6, 0.025))


def test_a_task_without_a_standard_error_never_decides_the_winner_and_is_shown_as_such():
    tasks = {"a": {"acc": 1.0, "acc_stderr": None}}
    assert mean_accuracy(tasks) == (1.0, float("inf"))
    row = {"name": "dense", "sparsity": 0.0, "kl": -1e-9, "perplexity": 2.0, "tasks": tasks, "n_tokens": 0, "seconds": 0.0}
    _, cells = table_cells({"rows": [row]})
    assert cells[0] == ["dense", "0.00%", "0.0000", "2.000", "100.0 ± –", "0", "0"]
