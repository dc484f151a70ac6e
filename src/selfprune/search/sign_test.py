"""Which finalist wins: a paired test over the documents of lm-eval's search tasks.

The finalist with the best search score wins, unless another one answers significantly more of the same documents correctly. Of a
pair of finalists, only the documents that one of them answers correctly and the other does not tell them apart. If both were
equally good, each would have half of these, by a binomial distribution (sign test; McNemar, Psychometrika 12, 1947; here exact
and one-sided). The probabilities are multiplied by the number of rivals (Bonferroni), so that the level holds for all together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.05
"""Probability at which a finalist that is no better than the one with the best search score wins all the same."""


@dataclass(frozen=True)
class Rival:
    """What the documents say of a finalist, beside the one with the best search score.

    Attributes:
        n_right: documents that it answers correctly.
        n_gained: of those, the ones that the finalist with the best search score does not.
        n_lost: documents that only the latter answers correctly.
        p: probability of so many gains or more among the documents that differ, were both equally good, times the rivals; at
            most 1.
    """

    n_right: int
    n_gained: int
    n_lost: int
    p: float


@dataclass(frozen=True)
class Verdict:
    """Who wins, and why.

    Attributes:
        chosen: position of the winner among the finalists.
        n_documents: of all tasks together.
        rivals: of every finalist, in their order; the first is compared with itself.
    """

    chosen: int
    n_documents: int
    rivals: Sequence[Rival]


def judge(answers: Sequence[Mapping[str, Sequence[float]]]) -> Verdict:
    """The verdict on finalists by their answers; the documents of all tasks are pooled, each counts alike.

    Args:
        answers: of every finalist, the one with the best search score first: task -> 1 for each document that it answers
            correctly, 0 for the others.

    Returns:
        the verdict; of several that are significantly better the one with the most right answers, then the best search score.
    """
    pooled = [[score for task in sorted(one) for score in one[task]] for one in answers]
    rivals = [_compare(one, pooled[0], len(pooled) - 1) for one in pooled]
    better = [i for i, rival in enumerate(rivals) if rival.p <= LEVEL]
    chosen = max(better, key=lambda i: (rivals[i].n_right, -i), default=0)
    return Verdict(chosen, len(pooled[0]), rivals)


def _compare(answers: Sequence[float], leader: Sequence[float], n_rivals: int) -> Rival:
    # Imported here because it takes half a second.
    from scipy.stats import binomtest

    gained = sum(a > b for a, b in zip(answers, leader, strict=True))
    lost = sum(a < b for a, b in zip(answers, leader, strict=True))
    p = binomtest(gained, gained + lost, alternative="greater").pvalue if gained + lost else 1.0
    return Rival(round(sum(answers)), gained, lost, min(1.0, float(p) * max(1, n_rivals)))
