"""Races candidates: many on few windows, survivors on more, always on the same windows, the incumbent in every final rung.

An allocation is scored only on windows that it has not seen yet, whichever race showed them. Where rungs are nested, a survivor
thus pays for the new windows alone; where they are drawn afresh for every race, the incumbent is scored on each last one.
Towards the end of the budget no rung is opened that cannot be paid, and no more candidates go on to the next than can be.
"""

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfprune.allocations.candidate import FINAL, RE_ENTRY, Candidate, Proposal, State
from selfprune.allocations.objective import ObjectiveValues
from selfprune.allocations.paired import paired_z
from selfprune.search.bench import visiting_order
from selfprune.search.ladder import Ladder
from selfprune.search.scoring import Scorer


@dataclass
class _Runner:
    """A candidate in the race, with its scores by window."""

    candidate: Candidate
    known: dict[int, float]
    n_tokens: int

    def scores(self, windows: Sequence[int]) -> list[float]:
        return [self.known[window] for window in windows]

    def mean(self, windows: Sequence[int]) -> float:
        return math.fsum(self.scores(windows)) / len(windows)

    def stop(self, reason: str) -> None:
        self.candidate = replace(self.candidate, state=State.STOPPED, reason=reason, objectives={})


class Racer:
    """The races of one search.

    Args:
        search: its name, as it stands in the archive.
        scorer: measures allocations on the search windows.
        ladder: the rungs.
        seed: of the windows that are drawn afresh.
        objective_values: what COMPLETE candidates are told apart by besides their score.

    Attributes:
        incumbent: the winner of the last final rung; None before the first.
        champions: all that were the incumbent, the newest last.

    Example:
        >>> candidates = Racer("main", scorer, Ladder(), seed=0).race(0, proposals)
    """

    def __init__(
        self, search: str, scorer: Scorer, ladder: Ladder, seed: int, objective_values: ObjectiveValues | None = None
    ) -> None:
        self.search, self.scorer, self.ladder = search, scorer, ladder
        self.objective_values = objective_values or ObjectiveValues()
        self.incumbent: Candidate | None = None
        self.champions: list[Candidate] = []
        self.n_open = 1 if ladder.grows else len(ladder.rungs)
        self._rng = random.Random(f"{seed} {search}")
        self._known: dict[tuple[int, ...], dict[int, float]] = {}

    def race(self, first_id: int, proposals: Sequence[Proposal], max_tokens: int = sys.maxsize) -> list[Candidate]:
        """Every proposal's fate, in their order, and after them the incumbent's, where it was scored on further windows.

        Args:
            first_id: id of the first.
            proposals: what to score.
            max_tokens: what the race may cost; the proposals and their first rung must not cost more (`n_payable_entrants`).
        """
        runners = [self._enter(first_id + i, proposal) for i, proposal in enumerate(proposals)]
        rungs = self._rungs(len(runners), self._n_left(runners, max_tokens))
        for rung, windows in enumerate(rungs):
            is_last = rung + 1 == len(rungs)
            holder = self._reenter(first_id + len(proposals)) if is_last else None
            self._run([*runners, *([holder] if holder else [])], windows)
            if not is_last:
                n_payable = self._n_payable(windows, rungs[rung + 1 :], self._n_left(runners, max_tokens))
                if n_payable < 1:
                    return self._run_out(runners, windows)
                self._drop(runners, windows, min(n_payable, self.ladder.n_survivors[rung]))
        is_news = holder is not None and (self.ladder.fresh or holder.candidate.n_windows > self._held().n_windows)
        self._decide(runners, holder, is_news, rungs[-1])
        return [runner.candidate for runner in [*runners, *([holder] if holder and is_news else [])]]

    def n_payable_entrants(self, n_tokens: int) -> int:
        """How many candidates so many tokens can see through the first rung of a race, whatever the candidates."""
        n_met = 1 if self.incumbent and self.ladder.fresh and len(self.ladder.rungs) == 1 else 0
        return max(0, n_tokens // self.n_tokens_of_entrants(1) - n_met)

    def n_tokens_of_entrants(self, n: int) -> int:
        """Tokens that the first rung costs so many candidates at most."""
        return n * self.ladder.rungs[0] * self.scorer.n_tokens_per_window

    def final_rung(self, first_id: int, n: int, max_tokens: int = sys.maxsize) -> list[Candidate]:
        """The last `n` champions on all windows; none where a nested ladder has a single one.

        Args:
            first_id: id of the first.
            n: how many.
            max_tokens: what they may cost; the oldest champions stay away where it would cost more.
        """
        while n and self.n_tokens_of_final_rung(n) > max_tokens:
            n -= 1
        runners = [self._enter(first_id + i, _again(champion, FINAL)) for i, champion in enumerate(self._finalists(n))]
        self._run(runners, range(self.scorer.n_windows))
        return [runner.candidate for runner in runners]

    def n_tokens_of_final_rung(self, n: int) -> int:
        """Tokens that a final rung would cost now."""
        known = [self._known[self.scorer.grid.genome(champion.allocation)] for champion in self._finalists(n)]
        n_missing = sum(self.scorer.n_windows - len(scores) for scores in known)
        return n_missing * self.scorer.n_tokens_per_window

    def _finalists(self, n: int) -> list[Candidate]:
        """The last `n` champions that differ, the newest first; none where a final rung decides nothing."""
        if n == 1 and not self.ladder.fresh:
            return []
        newest: dict[tuple[int, ...], Candidate] = {}
        for champion in reversed(self.champions):
            newest.setdefault(self.scorer.grid.genome(champion.allocation), champion)
        return list(newest.values())[:n]

    def _rungs(self, n_candidates: int, n_left: int) -> list[Sequence[int]]:
        """The windows of each open rung, but for those new to the incumbent that the windows left do not pay."""
        n_windows = self.ladder.rungs
        if self.ladder.fresh:
            return [self._rng.sample(range(self.scorer.n_windows), n) for n in n_windows]
        # Without an incumbent there is nothing to meet it on: what cannot be paid is told as the race runs.
        n_rungs, n_seen = self.n_open, self.incumbent.n_windows if self.incumbent else n_windows[-1]
        while n_rungs > 1 and (n_new := n_windows[n_rungs - 1] - n_seen) > 0:
            if self.ladder.most_windows(n_candidates, n_rungs) + n_new <= n_left:
                break
            n_rungs -= 1
        return [range(n) for n in n_windows[:n_rungs]]

    def _n_left(self, runners: Sequence[_Runner], max_tokens: int) -> int:
        """Windows that can still be paid after what the runners have cost."""
        return (max_tokens - sum(runner.n_tokens for runner in runners)) // self.scorer.n_tokens_per_window

    def _n_payable(self, windows: Sequence[int], following: Sequence[Sequence[int]], n_left: int) -> int:
        """How many may go on from one rung to the next of those that follow, which the incumbent joins if it is the last."""
        if self.incumbent and len(following) == 1:
            known = self._known[self.scorer.grid.genome(self.incumbent.allocation)]
            n_left -= sum(window not in known for window in following[0])
        return n_left // sum(window not in windows for window in following[0])

    def _run_out(self, runners: Sequence[_Runner], windows: Sequence[int]) -> list[Candidate]:
        """The fates of a race whose next rung cannot be paid: the incumbent stays, and only a free place is taken."""
        if self.incumbent is None:
            self._decide(runners, None, False, windows)
        else:
            for runner in runners:
                if runner.candidate.state is State.COMPLETE:
                    runner.stop(f"no tokens left for more than {runner.candidate.n_windows} windows")
        return [runner.candidate for runner in runners]

    def _enter(self, candidate_id: int, proposal: Proposal) -> _Runner:
        if proposal.allocation is None:
            failed = Candidate(
                candidate_id, self.search, proposal, State.FAILED, n_tokens=proposal.proposal_tokens, reason=proposal.failure
            )
            return _Runner(failed, {}, proposal.proposal_tokens)
        self.scorer.grid.check(proposal.allocation)
        known = self._known.setdefault(self.scorer.grid.genome(proposal.allocation), {})
        candidate = Candidate(candidate_id, self.search, proposal, State.COMPLETE)
        return _Runner(candidate, known, proposal.proposal_tokens)

    def _reenter(self, candidate_id: int) -> _Runner | None:
        return self._enter(candidate_id, _again(self._held(), RE_ENTRY)) if self.incumbent else None

    def _run(self, runners: Sequence[_Runner], windows: Sequence[int]) -> None:
        """Scores all that still race on the windows that they do not know, in an order that shares the most blocks."""
        racing = [runner for runner in runners if runner.candidate.state is State.COMPLETE]
        order = visiting_order([r.candidate.allocation for r in racing], self.scorer.last, self.scorer.grid)
        missing_of = {i: [window for window in windows if window not in racing[i].known] for i in order}
        self.scorer.expect([(racing[i].candidate.allocation, missing) for i, missing in missing_of.items() if missing])
        for runner in (racing[i] for i in order):
            missing = [window for window in windows if window not in runner.known]
            if missing:
                found = self.scorer.score(self.search, runner.candidate.id, runner.candidate.allocation, missing)
                runner.known.update(found)
                runner.n_tokens += len(missing) * self.scorer.n_tokens_per_window
        for runner in racing:
            mean = runner.mean(windows)
            seen = replace(runner.candidate, n_windows=len(windows), n_tokens=runner.n_tokens)
            if math.isfinite(mean):
                objectives = self.objective_values.of(seen.allocation, {window: runner.known[window] for window in windows})
                runner.candidate = replace(seen, score=mean, objectives=objectives)
            else:
                runner.candidate = replace(seen, state=State.FAILED, score=None, reason="the score is not finite", objectives={})

    def _drop(self, runners: Sequence[_Runner], windows: Sequence[int], n_survivors: int) -> None:
        """Stops those beyond the survivors' ranks, and those clearly worse than the best."""
        racing = [r for r in runners if r.candidate.state is State.COMPLETE]
        ranked = sorted(racing, key=lambda r: (r.candidate.score, r.candidate.id))
        for rank, runner in enumerate(ranked):
            z = paired_z(runner.scores(windows), ranked[0].scores(windows))
            if rank >= n_survivors:
                reason = f"rank {rank + 1} of {len(ranked)} after {runner.candidate.n_windows} windows"
            elif z > self.ladder.z_worse:
                reason = f"worse than the best by {z:.1f} standard errors after {runner.candidate.n_windows} windows"
            else:
                continue
            runner.stop(reason)

    def _decide(self, runners: Sequence[_Runner], holder: _Runner | None, is_news: bool, windows: Sequence[int]) -> None:
        """Who is the incumbent now; opens the next rung unless the gain is clear."""
        racing = [r for r in runners if r.candidate.state is State.COMPLETE]
        leader = min(racing, key=lambda r: (r.candidate.score, r.candidate.id), default=None)
        if holder and holder.candidate.state is State.FAILED:
            broken, holder = self.scorer.grid.genome(holder.candidate.allocation), None
            self.champions = [c for c in self.champions if self.scorer.grid.genome(c.allocation) != broken]
            self.incumbent = self.champions[-1] if self.champions else None
        elif holder and is_news:
            self.incumbent = holder.candidate
        is_clear = False
        if leader and (holder is None or _score(leader.candidate) < _score(holder.candidate)):
            gain = _score(holder.candidate) - _score(leader.candidate) if holder else 0.0
            z = paired_z(leader.scores(windows), holder.scores(windows)) if holder else -math.inf
            is_clear = z <= -self.ladder.z_better
            leader.candidate = replace(leader.candidate, gain=gain)
            self.incumbent = leader.candidate
            self.champions.append(leader.candidate)
        if not is_clear:
            self.n_open = min(self.n_open + 1, len(self.ladder.rungs))

    def _held(self) -> Candidate:
        assert self.incumbent is not None
        return self.incumbent


def _again(champion: Candidate, operator: str) -> Proposal:
    return Proposal(champion.allocation, champion.proposal.proposer, operator, (champion.id,))


def _score(candidate: Candidate) -> float:
    assert candidate.score is not None
    return candidate.score
