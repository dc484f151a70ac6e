import math

import pytest

from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.reports.conclusions import (
    compare_with_winner,
    contest_record,
    contest_sentence,
    cost_sentence,
    safety_sentence,
    training_sentences,
    verdict_sentence,
)
from selfprune.reports.results import Contest
from selfprune.search.sign_test import judge


def rows(**window_kl):
    return [{"name": name, "kl": sum(kl) / len(kl), "window_kl": kl} for name, kl in window_kl.items()]


def verdict(**window_kl):
    found = rows(**window_kl)
    winner = next(row for row in found if row["name"] == "winner")
    return verdict_sentence(winner["kl"], compare_with_winner(found), len(winner["window_kl"]))


def test_a_winner_that_beat_all_is_told_with_the_paired_difference_to_the_next_best():
    said = verdict(dense=[0.0, 0.0, 0.0], uniform=[0.9, 1.0, 1.1], owl=[0.3, 0.4, 0.8], winner=[0.1, 0.3, 0.5])
    # differences of 0.2, 0.1 and 0.3 have a standard error of 0.1 / √3
    assert said == (
        "The winner beat every yardstick and control: at a report KL of 0.3000 it lies 0.2000 ± 0.0577 below owl, the "
        "best of them (paired difference over 3 report windows ± standard error)."
    )


def test_a_winner_that_lost_says_so_first_and_what_is_not_clear_is_no_difference():
    noisy, better = [0.1, 0.5, 0.62], [0.2, 0.3, 0.1]
    said = verdict(uniform=[1.3, 1.4, 1.4], noisy=noisy, owl=better, winner=[0.3, 0.4, 0.4])
    assert said == (
        "The winner, at a report KL of 0.3667, lost to owl by 0.1667 ± 0.0667; it is not clearly apart from noisy (0.0400"
        " ± 0.1249); it beat uniform by 1.0000 ± 0.0000 (paired difference over 3 report windows ± standard error; up to "
        "2 standard errors count as none)."
    )
    assert verdict(owl=[0.3, 0.3], winner=[0.1, 0.1]).startswith(
        "The winner beat owl: at a report KL of 0.1000 it lies 0.2000 ± "
    )


def test_an_allocation_that_is_the_winners_is_even():
    (comparison,) = compare_with_winner(rows(owl=[0.3, 0.4], winner=[0.3, 0.4]))
    assert comparison == {"name": "owl", "kl_difference": 0.0, "standard_error": 0.0, "outcome": "even"}


def test_rows_of_an_earlier_version_and_broken_ones_are_compared_as_far_as_they_can_be():
    old = [{"name": "owl", "kl": 0.4}, {"name": "winner", "kl": 0.3}]
    (comparison,) = compare_with_winner(old)
    assert comparison["kl_difference"] == pytest.approx(0.1)
    assert (comparison["standard_error"], comparison["outcome"]) == (None, "better")
    broken = compare_with_winner(rows(uniform=[math.nan, 0.1], owl=[0.5, 0.6], winner=[0.3, 0.4]))
    assert [(one["name"], one["kl_difference"], one["outcome"]) for one in broken][1] == ("uniform", None, "even")
    assert "no yardstick or control" in verdict(dense=[0.0], winner=[0.3])


def contest(*right):
    finalists = [Candidate(i, "main", Proposal({"a": i}, "p"), State.COMPLETE, 0.1 * (i + 1), 8) for i in range(len(right))]
    return Contest(finalists, judge([{"task": [float(i in some) for i in range(16)]} for some in right]))


def test_the_report_says_when_the_documents_decided_and_with_which_counts():
    found = contest({0}, {0, *range(4, 14)})
    record = contest_record(found)
    assert found.winner.id == 1
    assert record["decided"]
    assert record["candidates"][1] == {"id": 1, "score": 0.2, "n_right": 11, "n_gained": 10, "n_lost": 0, "p": 2**-10}
    assert contest_sentence({"id": 1, "proposer": "p"}, record) == (
        "The winner is candidate 1, proposed by `p`. Candidate 0 has the best search score, but candidate 1 answered "
        "significantly more documents correctly: 11 against 1, 10 gained and 0 lost, p = 0.00098 (exact one-sided sign "
        "test on 16 documents of lm-eval's search tasks, level 0.05)."
    )


def test_the_report_says_when_the_documents_did_not_decide():
    record = contest_record(contest(set(), {0, 1}, {3}))
    assert not record["decided"]
    assert contest_sentence({"id": 0, "proposer": "p"}, record) == (
        "The winner is candidate 0, proposed by `p`, which has the best search score; no other finalist answered "
        "significantly more documents correctly: candidate 1: 2 against 0, 2 gained and 0 lost, p = 0.5; candidate 2: 1 "
        "against 0, 1 gained and 0 lost, p = 1 (exact one-sided sign test on 16 documents of lm-eval's search tasks, "
        "level 0.05, times 2 rivals)."
    )


def test_without_search_tasks_or_rivals_the_best_search_score_wins():
    alone = contest_record(Contest(contest(set()).finalists, judge([{}])))
    assert contest_sentence({"id": 0, "proposer": "p"}, alone) == (
        "The winner is candidate 0, proposed by `p`, which has the best search score."
    )


def test_the_cost_is_that_of_the_search_and_of_all_rows():
    spent = {"n_tokens": 5_000, "seconds": 2.0, "language_model_tokens": 30}
    report = {
        "search": {"n_tokens": 5_000, "seconds": 2.0, "n_candidates": 9, "n_proposal_tokens": 1_024, "ending": "why"},
        "rows": [{"name": "random", **spent, "language_model_tokens": 0}, {"name": "winner", **spent}],
        "language_model": {"prompt_tokens": 20, "reply_tokens": 10},
    }
    assert cost_sentence(report) == (
        "The search spent 5,000 tokens of evaluation in 2 s on 9 candidates, 1,024 of them for gradients, and 30 tokens "
        "of the language model; all rows together took 10,000 tokens of evaluation in 4 s and 30 tokens of the language "
        "model. The search ended: why."
    )


def test_what_training_brought_is_told_as_a_share_of_the_rise_of_log_perplexity():
    course = {"n_tokens": 1_000_000, "scores": [0.3, 0.1, 0.2], "best": 1, "ending": "all tokens were seen", "seconds": 60.0}
    rows = [
        {"name": "dense", "kl": 0.0, "perplexity": 10.0},
        {"name": "winner", "kl": 0.3, "perplexity": 40.0},
        {"name": "winner trained", "kl": 0.1, "perplexity": 20.0, "training": course},
    ]
    (sentence,) = training_sentences(rows)
    assert "KL of winner from 0.3000 to 0.1000 with 1,000,000 tokens in 60 s, and took back 50% of the rise" in sentence
    assert "check 1 of 2 on the search split, and it ended since all tokens were seen." in sentence
    assert [row["name"] for row in compare_with_winner([*rows, {"name": "uniform", "kl": 0.5}])] == ["uniform"]


def test_a_training_that_heals_its_own_text_alone_is_told_and_cuts_on_the_way_are_counted():
    course = {"n_tokens": 1_000, "scores": [0.3, 0.1], "best": 1, "ending": "all was seen", "seconds": 6.0, "n_cuts": 4}
    rows = [
        {"name": "dense", "kl": 0.0, "perplexity": 10.0},
        {"name": "winner", "kl": 0.3, "perplexity": 20.0},
        {"name": "winner trained", "kl": 0.4, "perplexity": 40.0, "training": course},
    ]
    did, narrow = training_sentences(rows)
    assert "tokens in 6 s and 4 cuts on the way, and added 100% to the rise of log-perplexity" in did
    assert "KL of winner trained fell from 0.3000 to 0.1000, and on the report split it rose" in narrow
    course["best"] = 0
    assert len(training_sentences(rows)) == 1, "nothing was healed, so nothing is narrow"


def test_who_went_too_far_is_told_where_to_ask():
    assert safety_sentence([{"name": "winner", "kl": 0.05}]) == ""
    assert "above 0.05 nats per token" in safety_sentence([{"name": "dense", "kl": 0}, {"name": "winner", "kl": 0.2}])
