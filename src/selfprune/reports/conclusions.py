"""What a report concludes, as records and as sentences: why the winner won, what it beat, and what it cost."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from selfprune.allocations.paired import paired_difference
from selfprune.reports.results import Contest
from selfprune.search.sign_test import LEVEL

TRAINED = " trained"
"""What the name of a row ends with whose model was trained after it was pruned."""
SAFE_KL = 0.05
"""Nats per token to the dense model, up to which pruning is mostly harmless."""
CLEAR = 2.0
"""Standard errors beyond which a paired difference counts as a difference."""


def contest_record(contest: Contest) -> dict[str, Any]:
    """How the finalists did on the documents of the search tasks; the best search score first."""
    return {
        "level": LEVEL,
        "n_documents": contest.verdict.n_documents,
        "decided": contest.verdict.chosen > 0,
        "candidates": [
            {"id": c.id, "score": c.score, "n_right": r.n_right, "n_gained": r.n_gained, "n_lost": r.n_lost, "p": r.p}
            for c, r in zip(contest.finalists, contest.verdict.rivals, strict=True)
        ],
    }


def contest_sentence(winner: Mapping[str, Any], contest: Mapping[str, Any]) -> str:
    """Who won by which rule.

    Args:
        winner: `search.winner` of the report.
        contest: as of `contest_record`.
    """
    leader, *others = contest["candidates"]
    told = f"The winner is candidate {winner['id']}, proposed by `{winner['proposer']}`"
    if not contest["n_documents"] or not others:
        return f"{told}, which has the best search score."
    rule = (
        f"exact one-sided sign test on {contest['n_documents']:,} documents of lm-eval's search tasks, level {contest['level']}"
    )
    corrected = f", times {len(others)} rivals" if len(others) > 1 else ""
    if contest["decided"]:
        chosen = next(one for one in others if one["id"] == winner["id"])
        return (
            f"{told}. Candidate {leader['id']} has the best search score, but candidate {chosen['id']} answered significantly "
            f"more documents correctly: {chosen['n_right']} against {leader['n_right']}, {_counts(chosen)} ({rule}{corrected})."
        )
    tried = "; ".join(f"candidate {one['id']}: {one['n_right']} against {leader['n_right']}, {_counts(one)}" for one in others)
    return (
        f"{told}, which has the best search score; no other finalist answered significantly more documents correctly: {tried} "
        f"({rule}{corrected})."
    )


def _counts(rival: Mapping[str, Any]) -> str:
    return f"{rival['n_gained']} gained and {rival['n_lost']} lost, p = {rival['p']:.2g}"


def compare_with_winner(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every yardstick and control beside the winner, the lowest report KL first.

    Args:
        rows: name, `kl` and, unless an earlier version measured them, the `window_kl` of every report window.

    Returns:
        name, `kl_difference` (positive where the winner is lower), its `standard_error` over the paired windows (None where
        unknown), and the outcome for the winner: `better`, `worse`, or `even` where the difference is not clear.
    """
    winner = next(row for row in rows if row["name"] == "winner")
    others = [row for row in rows if row["name"] not in ("dense", "winner") and "training" not in row]
    return [_compare(row, winner) for row in sorted(others, key=lambda row: (math.isnan(row["kl"]), row["kl"]))]


def _compare(row: Mapping[str, Any], winner: Mapping[str, Any]) -> dict[str, Any]:
    difference, error = row["kl"] - winner["kl"], math.nan
    if row.get("window_kl") and winner.get("window_kl") and math.isfinite(difference):
        difference, error = paired_difference(row["window_kl"], winner["window_kl"])
    is_clear = abs(difference) > (0.0 if math.isnan(error) else CLEAR * error)
    return {
        "name": row["name"],
        "kl_difference": difference if math.isfinite(difference) else None,
        "standard_error": error if math.isfinite(error) else None,
        "outcome": ("better" if difference > 0 else "worse") if is_clear else "even",
    }


def verdict_sentence(kl: float, comparisons: Sequence[Mapping[str, Any]], n_windows: int) -> str:
    """Whether the winner beat every yardstick and control, and by how much.

    Args:
        kl: report KL of the winner.
        comparisons: as of `compare_with_winner`.
        n_windows: report windows.
    """
    if not comparisons:
        return f"The winner's report KL is {max(kl, 0.0):.4f}; there is no yardstick or control to compare it with."
    at, how = f"report KL of {max(kl, 0.0):.4f}", f"paired difference over {n_windows} report windows ± standard error"
    if all(one["outcome"] == "better" for one in comparisons):
        best, *others = comparisons
        beaten, which = ("every yardstick and control", f" {best['name']}, the best of them") if others else (best["name"], "")
        return f"The winner beat {beaten}: at a {at} it lies {_by(best)} below{which} ({how})."
    groups = {
        "lost to": [f"{one['name']} by {_by(one)}" for one in comparisons if one["outcome"] == "worse"],
        "is not clearly apart from": [f"{one['name']} ({_by(one)})" for one in comparisons if one["outcome"] == "even"],
        "beat": [f"{one['name']} by {_by(one)}" for one in comparisons if one["outcome"] == "better"],
    }
    said = "; it ".join(f"{verb} {_listed(names)}" for verb, names in groups.items() if names)
    return f"The winner, at a {at}, {said} ({how}; up to {CLEAR:g} standard errors count as none)."


def _by(comparison: Mapping[str, Any]) -> str:
    difference, error = comparison["kl_difference"], comparison["standard_error"]
    if difference is None:
        return "not a number"
    shown = abs(difference) if comparison["outcome"] != "even" else difference
    return f"{shown:.4f} ± {'–' if error is None else f'{error:.4f}'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def cost_sentence(report: Mapping[str, Any]) -> str:
    """What the main search and all searches spent, and why the main one ended.

    Args:
        report: `report.json`.
    """
    search, rows, asked = report["search"], report["rows"], report["language_model"]
    n_own = sum(row["language_model_tokens"] for row in rows if row["name"] == "winner")
    n_all = asked["prompt_tokens"] + asked["reply_tokens"]
    spent = f"{search['n_tokens']:,} tokens of evaluation in {search['seconds']:.0f} s on {search['n_candidates']} candidates"
    gradients = f", {search['n_proposal_tokens']:,} of them for gradients," if search["n_proposal_tokens"] else ""
    return (
        f"The search spent {spent}{gradients} and {n_own:,} tokens of the language model; all rows together took "
        f"{sum(row['n_tokens'] for row in rows):,} tokens of evaluation in {sum(row['seconds'] for row in rows):.0f} s and "
        f"{n_all:,} tokens of the language model. The search ended: {search['ending']}."
    )


def further_sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """On what training brought, and on whether less sparsity would be wiser.

    Args:
        rows: of the report.
    """
    return [*training_sentences(rows), *filter(None, [safety_sentence(rows)])]


def safety_sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where to ask how far to go, when the winner is beyond what is usually safe; empty otherwise.

    Args:
        rows: of the report.
    """
    kl = next(row["kl"] for row in rows if row["name"] == "winner")
    if kl <= SAFE_KL:
        return ""
    return (
        f"The winner's report KL of {kl:.3f} is above {SAFE_KL:g} nats per token, beyond which tasks mostly suffer: `python -m "
        "selfprune.cliff FOLDER` with the same options finds the highest sparsity that is safe."
    )


def training_sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What training made of pruned models, a sentence each: the share of the rise of log-perplexity that it took back.

    Args:
        rows: of the report.
    """
    known = {row["name"]: row for row in rows}
    sentences = []
    for row in rows:
        if "training" not in row:
            continue
        course, before = row["training"], known[row["name"].removesuffix(TRAINED)]
        cuts = f" and {n_cuts} cuts on the way" if (n_cuts := course.get("n_cuts", 0)) else ""
        said = (
            f"Training took the KL of {before['name']} from {before['kl']:.4f} to {row['kl']:.4f} with {course['n_tokens']:,} "
            f"tokens in {course['seconds']:.0f} s{cuts}"
        )
        rise, back = (math.log(before["perplexity"] / other["perplexity"]) for other in (known["dense"], row))
        if rise > 0:
            did = f"took back {back / rise:.0%} of" if back >= 0 else f"added {-back / rise:.0%} to"
            said += f", and {did} the rise of log-perplexity"
        kept = f"the weights kept are those of check {course['best']} of {len(course['scores']) - 1} on the search split"
        sentences.append(f"{said}; {kept}, and it ended since {course['ending']}.")
        first, best = course["scores"][0], course["scores"][course["best"]]
        if best < first and row["kl"] > before["kl"]:
            sentences.append(
                f"On the search split the KL of {row['name']} fell from {first:.4f} to {best:.4f}, and on the report split it "
                "rose: the training text heals what it needs itself and harms the rest; train on a wider one, as by data=mixture."
            )
    return sentences
