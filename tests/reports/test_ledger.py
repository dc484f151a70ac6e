import json

import pytest
from in_turn import in_turn

from selfprune.allocations.candidate import FINAL, RE_ENTRY, Candidate, Proposal, State
from selfprune.language_models.base import Reply
from selfprune.language_models.calls import read_calls
from selfprune.language_models.recorded import RecordingLanguageModel
from selfprune.reports.ledger import count_by_proposer, count_by_search, without_text


def candidate(index, proposer, score, gain=None, state=State.COMPLETE, operator=""):
    proposal = Proposal({"a": 1}, proposer, operator)
    return Candidate(index, "main", proposal, state, score, n_windows=1, n_tokens=10, gain=gain)


def told(index, reply, operator="edits", search="main", gain=None, failure="", repair="", n_tokens=500):
    """A candidate that was read from a reply."""
    allocation = None if failure else {"a": index}
    proposal = Proposal(allocation, "self_pruner", operator, (), failure, reply=reply, repair=repair)
    if failure:
        return Candidate(index, search, proposal, State.FAILED, reason=failure)
    return Candidate(index, search, proposal, State.COMPLETE, 0.5, 8, n_tokens, gain)


def call(index, texts=("{}",), options=False, seconds=0.25, n_prompt=10, n_reply=3):
    replies = [{"text": text, "logprob": -1.0, "n_prompt_tokens": n_prompt, "n_reply_tokens": n_reply} for text in texts]
    key = {"options": list(texts)} if options else {"schema_sha256": "0", "seed": 1, "n": len(texts)}
    return {"call": index, "prompt": f"prompt {index}", **key, "model": "m", "replies": replies, "seconds": seconds}


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


def test_the_ledger_counts_what_the_calls_cost_and_what_became_of_the_replies():
    calls = [call(0, ["a", "b", "{bad", "d"]), call(1, ["e"], n_prompt=20)]
    candidates = [
        candidate(0, "uniform", 0.5, gain=0.0),
        told(1, (0, 0), "coefficients"),
        told(2, (0, 1), "coefficients", repair="a percent clipped; a number in quotes", gain=0.25),
        told(3, (0, 2), "coefficients", failure="no JSON object with moves: {bad"),
        told(4, (0, 3), "coefficients", failure="duplicate of candidate 2: d"),
        told(5, (1, 0), gain=0.5, repair="a percent clipped"),
    ]
    assert count_by_search(calls, candidates, {"main": candidates[0]}) == {
        "main": {
            "calls": 2, "prompt_tokens": 60, "reply_tokens": 15, "seconds": 0.5, "replies": 5,
            "valid": 3, "repaired": 2, "failed": 2, "accepted": 2, "gain": 0.75,
            "n_tokens": 1500, "gain_per_thousand_tokens": 0.5,
            "repairs": {"a percent clipped": 2, "a number in quotes": 1},
            "failures": {"no JSON object with moves": 1, "duplicate of candidate …": 1},
            "operators": {
                "coefficients": {"replies": 4, "valid": 2, "repaired": 1, "failed": 2, "accepted": 1, "gain": 0.25},
                "edits": {"replies": 1, "valid": 1, "repaired": 1, "failed": 0, "accepted": 1, "gain": 0.5},
            },
            "has_winner": False,
        }
    }  # fmt: skip


def test_no_call_gives_no_ledger():
    assert count_by_search([], [candidate(0, "uniform", 0.5)], {}) == {}


def test_calls_without_proposals_count_for_the_main_search():
    ours = count_by_search([call(0), call(1)], [candidate(0, "uniform", 0.5)], {})
    assert list(ours) == ["main"]
    assert (ours["main"]["calls"], ours["main"]["replies"], ours["main"]["valid"] + ours["main"]["failed"]) == (2, 2, 0)
    assert ours["main"]["operators"] == {}
    assert ours["main"]["gain_per_thousand_tokens"] == 0.0


def test_every_call_counts_for_one_search():
    calls = [call(0), call(1), call(2, ["x", "y"], options=True), call(3, ["x", "y"], options=True), call(4), call(5), call(6)]
    candidates = [told(0, (1, 0)), told(1, (2, 1), "choice"), told(2, (5, 0), search="control")]
    ours = count_by_search(calls, candidates, {})
    # 0 chose parents for 1; 3 scored the options of 2 once more; 4 chose parents for 5; nothing came of 6.
    assert {search: counts["calls"] for search, counts in ours.items()} == {"main": 4, "control": 3}


def test_options_that_were_scored_are_no_replies_until_one_is_taken():
    calls = [call(0, ["x", "y", "z"], options=True), call(1, ["x", "y", "z"], options=True)]
    candidates = [told(0, (0, 2), "choice"), told(1, (0, 0), "choice")]
    ours = count_by_search(calls, candidates, {})["main"]
    assert (ours["calls"], ours["replies"], ours["valid"], ours["reply_tokens"]) == (2, 2, 2, 18)


def test_a_winner_counts_as_what_it_was_when_it_was_proposed():
    first = told(0, (0, 0), gain=0.1)
    again = Candidate(1, "main", Proposal(first.allocation, "self_pruner", RE_ENTRY, (0,)), State.COMPLETE, 0.4, 8)
    final = Candidate(2, "main", Proposal(first.allocation, "self_pruner", FINAL, (1,)), State.COMPLETE, 0.4, 16)
    ours = count_by_search([call(0)], [first, again, final], {"main": final})["main"]
    assert ours["has_winner"] is True
    assert ours["valid"] == 1


def test_a_reply_that_the_record_does_not_hold_is_passed_over():
    ours = count_by_search([call(0)], [told(0, (0, 0)), told(1, (0, 1)), told(2, (7, 0))], {})["main"]
    assert ours["valid"] == 1


@in_turn(
    ("failure", "text", "left"),
    [
        ("no JSON object with moves: {bad", "{bad and more", "no JSON object with moves"),
        ("no JSON object with moves: ", "", "no JSON object with moves"),
        ("HTTP 500: try later", "", "HTTP 500: try later"),
        ("unknown kind 'x'; known are q, k: a: b\nc", "a: b\nc d", "unknown kind 'x'; known are q, k"),
        ("no JSON object: \ud800é", "\ud800é…", "no JSON object"),
        ("", "text", ""),
    ],
)
def test_a_reason_is_told_without_the_reply(failure, text, left):
    assert without_text(failure, text) == left


def test_failures_that_differ_in_what_they_quote_count_as_one():
    failures = ["unknown kind 'a'; known are q", 'unknown kind "b\'s"; known are q', "a block must be 0 to 11, got '12'"]
    failures += ["blocks needs 12 percents, got 3", "blocks needs 12 percents, got 14"]
    candidates = [told(i, (0, i), failure=failure) for i, failure in enumerate(failures)]
    ours = count_by_search([call(0, ["-"] * 5)], candidates, {})["main"]
    assert ours["failures"] == {
        "unknown kind …; known are q": 2,
        "blocks needs 12 percents, got …": 2,
        "a block must be 0 to 11, got …": 1,
    }


def test_only_the_calls_that_the_run_made_are_read_and_their_sums_are_the_recorder_s(tmp_path):
    class Counting:
        name = "counting"

        def complete(self, prompt, schema, n, seed):
            return [Reply(f"\ud800\u2028{i}", None, 7, 3) for i in range(n)]

        def score(self, prompt, options):
            return [Reply(option, -1.0, 5, 2) for option in options]

    path = tmp_path / "calls.jsonl"
    assert read_calls(path, 0) == []
    broken = RecordingLanguageModel(Counting, path)
    for k in range(3):
        broken.complete(f"prompt {k}", {}, n=2, seed=k)
        broken.score(f"prompt {k}", ["x", "y"])
    resumed = RecordingLanguageModel(Counting, path)
    resumed.complete("prompt 0", {}, n=2, seed=0)
    resumed.score("prompt 0", ["x", "y"])
    calls = read_calls(path, resumed.n_calls)
    assert [one["call"] for one in calls] == [0, 1]
    assert len(read_calls(path, broken.n_calls)) == len(path.read_text().splitlines()) == 6
    ours = count_by_search(calls, [], {})["main"]
    assert (ours["calls"], ours["prompt_tokens"], ours["reply_tokens"]) == (2, 24, 10)
    assert ours["calls"] == resumed.n_calls
    assert ours["prompt_tokens"] == resumed.n_prompt_tokens
    assert ours["reply_tokens"] == resumed.n_reply_tokens
    assert ours["seconds"] == pytest.approx(resumed.seconds, abs=1e-3)
    assert json.loads(json.dumps(ours)) == ours
