"""Transcripts from which the embedded model learns to answer Self-Pruner's prompts.

    python experiments/embedded_model/dialect.py dialect.jsonl

Each line holds a prompt, as a search would ask it, and the reply that further measurements justify: gradients over four times as
many windows as the prompt was made from, and, for coefficients, the allocation that a short search ended at. The settings are not
those that experiments report: other sparsities, other pruners, other seeds.
"""

import argparse
import itertools
import json
import logging
import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hydra import compose, initialize_config_dir

from selfprune.allocations.archive import Archive
from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.allocations.unit import Allocation, Unit
from selfprune.configs.command_line import set_up
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import RunConfig, to_config
from selfprune.proposers.coefficients import Coefficients, fit
from selfprune.proposers.move_values import MoveValues
from selfprune.proposers.prompted import moves, operators
from selfprune.proposers.prompted.coefficient_replies import show_coefficients
from selfprune.proposers.prompted.moves import MAX_MOVES, Move
from selfprune.proposers.prompted.operators import PromptContext
from selfprune.proposers.prompted.unit_view import UnitView
from selfprune.proposers.searches.gradient import Gradient
from selfprune.proposers.unit_values import UnitValues
from selfprune.runs.preparation import PreparedRun, prepare
from selfprune.runs.run_preflight import preflight
from selfprune.search.loop import Search
from selfprune.search.racing import Racer

logger = logging.getLogger("dialect")
PRUNERS = ("ria", "magnitude")
SPARSITIES = (0.45, 0.55, 0.65, 0.75)
SEEDS = (1001, 1002)
N_PROMPTS = 3
"""Prompts of every kind that each look at an allocation serves, with tables and histories of their own."""
BRACKET = 0.05
GROWTH = 8.0
"""By what factor a marginal cost grows per unit of sparsity, as a logarithm; about what searches find."""


class Teacher:
    """Answers prompts by measurements that the prompt does not show.

    Args:
        prepared: the model and its levels.
        seed: of what it draws.
    """

    def __init__(self, prepared: PreparedRun, seed: int) -> None:
        self.prepared, self.space = prepared, prepared.space
        self.view = UnitView(self.space)
        self.rng = random.Random(seed)
        self._n_candidates = 0
        self._called = {self.view.label(unit): unit for unit in self.space.grid.units}

    def transcripts(self) -> Iterator[dict[str, str]]:
        """The transcripts of this setting."""
        found = self._searched()
        starts = [self._scored(self.space.project(self._random_coefficients().expand(self.view))) for _ in range(4)]
        best = found[-1]
        for shown in ([], [found[0]], starts[:2], starts):
            worth = self._look(shown[0].allocation if shown else self.space.uniform(), 4)
            context = PromptContext(self.view, self.space.uniform(), best=sorted(shown, key=lambda c: c.score)[:3], worth=worth)
            yield self._transcript(operators.coefficients(context), show_coefficients(self.view, fit(self.view, best.allocation)))
        for candidate in [*found[:-1], *starts]:
            draws = [self._look(candidate.allocation, 4) for _ in range(2)]
            known = _mean([*draws, self._look(candidate.allocation, 8)])
            for drawn in N_PROMPTS * draws:
                context = PromptContext(
                    self.view, candidate.allocation, candidate.id, candidate.score, [], drawn, self._history(candidate, known),
                    self.rng.randint(4, 8), 8, self.rng.getrandbits(31),
                )  # fmt: skip
                request = operators.edits(context)
                ends = request.schema["properties"]["moves"]["items"]["properties"]
                units = [[self._called[label] for label in ends[end]["enum"]] for end in ("from", "to")]
                yield self._transcript(request, moves.show(self.view, self._best_moves(*units, known)))
                request = operators.choice(context)
                values = {option: self._value(request.moves_of(option, []), known) for option in request.options}
                yield self._transcript(request, max(values, key=values.__getitem__))

    def _searched(self) -> list[Candidate]:
        """The incumbents of a short search by gradients."""
        prepared = self.prepared
        config = replace(prepared.config.search, max_tokens=300 * prepared.scorer.n_tokens_per_window)
        racer = Racer("main", prepared.scorer, config.ladder, prepared.config.seed, prepared.objective_values)
        uniform = Proposal(self.space.uniform(), "uniform")
        archive = Archive(prepared.folder / "archive.jsonl")
        Search(Gradient().build(self.space, 0, prepared.language_model), racer, archive, [uniform]).go_on(config)
        return [c for c in archive.candidates if c.gain is not None and not c.is_champion_again]

    def _random_coefficients(self) -> Coefficients:
        by_kind = [{kind: self.rng.gauss(0, 10) for kind in self.view.kinds} for _ in range(2)]
        return Coefficients(by_kind[0], by_kind[1], self.rng.gauss(0, 10), self.rng.gauss(0, 10))

    def _scored(self, allocation: Allocation) -> Candidate:
        scorer = self.prepared.scorer
        windows = scorer.measure(allocation, range(8))["window_scores"]
        self._n_candidates += 1
        proposal = Proposal(allocation, "random")
        return Candidate(10_000 + self._n_candidates, "main", proposal, State.COMPLETE, math.fsum(windows) / len(windows))

    def _look(self, allocation: Allocation, n_windows: int) -> UnitValues:
        oracle = self.space.move_values
        values: MoveValues = oracle(allocation, BRACKET, self.rng.randrange(oracle.n_windows), n_windows)
        return UnitValues.of_moves(values, self.space.grid)

    def _best_moves(self, sources: Sequence[Unit], destinations: Sequence[Unit], worth: UnitValues) -> list[Move]:
        """The most valuable moves between different units, each as large as evens out what weights are worth."""
        pairs = [self._best_size(source, destination, worth) for source, destination in itertools.product(sources, destinations)]
        chosen: list[Move] = []
        taken: set[tuple[int, str]] = set()
        for value, move in sorted(pairs, key=lambda pair: -pair[0]):
            if not ({move.source, move.destination} & taken) and (value > 0 or not chosen):
                chosen.append(move)
                taken |= {move.source, move.destination}
        return chosen[:MAX_MOVES]

    def _best_size(self, source: Unit, destination: Unit, worth: UnitValues) -> tuple[float, Move]:
        ends = self.view.place(source), self.view.place(destination)
        sized = [Move(*ends, percent) for percent in (5, 10, 15, 20, 25, 30)]
        values = [self._value([move], worth) for move in sized]
        best = max(range(len(sized)), key=values.__getitem__)
        return values[best], sized[best]

    def _value(self, chosen: Sequence[Move], worth: UnitValues) -> float:
        """The fall of the score that moves promise, when marginal costs grow with sparsity."""
        total = 0.0
        for move in chosen:
            source, destination = self.view.find(*move.source), self.view.find(*move.destination)
            n_moved = move.percent / 100 * min(source.n_weights, destination.n_weights)
            gain, cost = max(worth.gains.get(source.name, 0.0), 0.0), max(worth.costs.get(destination.name, math.inf), 0.0)
            less, more = (GROWTH * n_moved / unit.n_weights for unit in (source, destination))
            total += n_moved * (gain * -math.expm1(-less) / less - cost * math.expm1(more) / more)
        return total

    def _history(self, candidate: Candidate, worth: UnitValues) -> list[str]:
        """Half of the time, how two earlier moves might have fared."""
        if self.rng.random() < 0.5:
            return []
        sources, destinations = self.view.promising(candidate.allocation, worth)
        found = moves.enumerate_moves(self.view, sources[:12], destinations[:12], 6, self.rng.getrandbits(31))
        ranked = sorted(found, key=lambda option: self._value(option, worth))
        return [f"Accepted: {moves.phrase(self.view, ranked[-1])}", f"Rejected: {moves.phrase(self.view, ranked[0])}"]

    def _transcript(self, request: operators.Request, reply: str) -> dict[str, str]:
        return {"operator": request.operator, "prompt": request.prompt, "reply": reply}


def _mean(worths: Sequence[UnitValues]) -> UnitValues:
    """The mean of looks, of which the last rests on twice the windows of the others."""
    weights = [1.0] * (len(worths) - 1) + [2.0]
    means = []
    for by_names in ([worth.gains for worth in worths], [worth.costs for worth in worths]):
        names = set.intersection(*map(set, by_names))
        means.append({n: sum(w * by_name[n] for w, by_name in zip(weights, by_names, strict=True)) / sum(weights) for n in names})
    return UnitValues(*means)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="JSONL file; settings that it holds are not measured again")
    parser.add_argument("--model", default="embedded", help="`embedded`, or the folder of another checkpoint of it")
    parser.add_argument("--pruners", nargs="+", default=PRUNERS)
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    set_up()
    lines = arguments.output.read_text().splitlines() if arguments.output.exists() else []
    done = {json.dumps(json.loads(line)["setting"]) for line in lines}
    for seed, pruner, sparsity in itertools.product(arguments.seeds, arguments.pruners, arguments.sparsities):
        setting = {"model": arguments.model, "pruner": pruner, "sparsity": sparsity, "seed": seed}
        if json.dumps(setting) in done:
            continue
        overrides = [
            f"pruner={pruner}", f"budget.sparsity={sparsity}", f"seed={seed}", f"model.path={arguments.model}", "harness=none",
            "~controls.random", "data.n_search=64", "search.batch_size=4",
        ]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(conf_folder()), version_base=None):
            config = to_config(compose("config", overrides=overrides), RunConfig)
            prepared = prepare(config, Path(folder), preflight(config, Path(folder)))
            found = [{"setting": setting, **transcript} for transcript in Teacher(prepared, seed).transcripts()]
        with arguments.output.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(transcript) + "\n" for transcript in found)
        logger.warning("%s: %d transcripts", setting, len(found))


if __name__ == "__main__":
    main()
