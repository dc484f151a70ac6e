"""The main search of a run and its controls, which all go on when the run is extended."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from selfprune.allocations.candidate import Candidate, Proposal, best
from selfprune.proposers.tied import TiedProposals
from selfprune.reports.results import Spent
from selfprune.runs.preparation import PreparedRun
from selfprune.search.first_round_budget import first_round_needs
from selfprune.search.gradient_values import GradientValues
from selfprune.search.loop import Progress, Search
from selfprune.search.racing import Racer
from selfprune.search.search_config import SearchConfig


class Searches:
    """The searches of a run by name, each begun when it first goes on.

    Args:
        prepared: what they share.
        yardsticks: known allocations that race first in the main search.

    Attributes:
        spent: search -> its cost so far.

    Example:
        >>> searches = Searches(prepared, yardsticks)
        >>> main = searches.go_on("main", config.search)
        >>> leaders = searches.run_controls(config.search)
    """

    def __init__(self, prepared: PreparedRun, yardsticks: Sequence[Proposal]) -> None:
        self.spent: dict[str, Spent] = {}
        self._prepared, self._yardsticks = prepared, yardsticks
        self._searches: dict[str, Search] = {}
        self._show: Callable[[Progress], Any] = lambda _: None

    def go_on(self, name: str, limits: SearchConfig) -> list[Candidate]:
        """Takes a search to its limits.

        Args:
            name: `main`, or of a control.
            limits: what it may spend in all.

        Returns:
            its candidates so far.
        """
        prepared, is_new = self._prepared, name not in self.spent
        search = self._searches.get(name) or self._begin(name)
        # the sensitivities count as the main search's
        seconds_before = 0.0 if is_new and name == "main" else prepared.scorer.seconds
        with prepared.display.stage(f"search: {name}", total=limits.max_tokens) as update:

            def show(state: Progress) -> None:
                best_score = "none yet" if state.best_score is None else f"{state.best_score:.4f}"
                update(state.n_tokens, f"best {best_score}, {state.n_candidates} candidates, {state.n_tokens:,} tokens")

            self._show = show
            search.go_on(limits)
        prepared.display.say(f"search: {name} ended: {search.ending}")
        seconds = prepared.scorer.seconds - seconds_before + (0.0 if is_new else self.spent[name].seconds)
        self.spent[name] = Spent(search.n_tokens, seconds, search.ending)
        if doubt := prepared.language_model.unanswered():
            prepared.display.warn(doubt)
        return search.candidates

    def run_controls(self, limits: SearchConfig) -> dict[str, Candidate]:
        """Takes every control to the tokens that the main search spent; control -> its best candidate, where it has one.

        Args:
            limits: the others of the stage.
        """
        limits = replace(limits, max_tokens=self.spent["main"].n_tokens)
        self._warn_of_short_controls(limits)
        found = {name: best(self.go_on(name, limits)) for name in self._prepared.config.controls}
        return {name: leaders[0] for name, leaders in found.items() if leaders}

    def _warn_of_short_controls(self, limits: SearchConfig) -> None:
        """The main search may have spent less than it was given, and so much that a control cannot pay its first round."""
        prepared = self._prepared
        windows = prepared.config.n_search_windows, prepared.config.data.n_tokens_per_window
        for name, control in prepared.config.controls.items():
            needed = sum(first_round_needs(limits, control.first_looks, *windows).values())
            if needed > limits.max_tokens:
                prepared.display.warn(
                    f"the control {name} needs {needed:,} tokens for its first round, but the main search spent "
                    f"{limits.max_tokens:,}, and no control may spend more: it goes without gradients, or with fewer "
                    "candidates; raise search.max_tokens for an equal comparison"
                )

    def _begin(self, name: str) -> Search:
        prepared = self._prepared
        proposer = prepared.config.proposer if name == "main" else prepared.config.controls[name]
        # The arms of a search share gradients, but no search has another's for nothing.
        gradients = GradientValues(prepared.scorer)
        working = proposer.build(replace(prepared.space, move_values=gradients), prepared.config.seed, prepared.language_model)
        working = TiedProposals(working, prepared.space) if prepared.space.target.ties else working
        racer = Racer(name, prepared.scorer, prepared.config.search.ladder, prepared.config.seed, prepared.objective_values)
        yardsticks, n_before = (self._yardsticks, prepared.n_sensitivity_tokens) if name == "main" else ([], 0)
        self._searches[name] = Search(working, racer, prepared.archive, yardsticks, self._tell, n_before, gradients)
        return self._searches[name]

    def _tell(self, state: Progress) -> None:
        self._show(state)
        self._prepared.trackers.round(state)
