"""Every proposer on units whose items weigh many weights, unequally many, under budgets of all measures.

What is promised is what `project` promises: an allocation saves the target, and no unit that it prunes could give its last useful
level back without missing it. So the surplus is less than the smallest of these levels. It may be more than the cheapest level of
the grid, where only dear items are pruned. EvoPress exchanges equally many weights, so that its children meet a budget of another
measure, but may save more than it asks for.
"""

import json
from fractions import Fraction

import pytest
from analytic_oracle import AnalyticOracle
from test_proposers import MEASURED, PROPOSERS, SIZES, converse, measured_items

from selfprune.allocations.budget import Budget, ContextCosts, Measure
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.proposers.base import SearchSpace

WEIGHTS_PER_ITEM = {"attn.q": 64, "attn.k": 160, "mlp.up": 3, "mlp.down": 1}
UNITS = [Unit(f"layers.{b}.{kind}", b, kind, n, WEIGHTS_PER_ITEM[kind]) for b in range(3) for kind, n in SIZES.items()]
GRID = LevelGrid.with_constant_step(UNITS, 0.05)
SECONDS = {
    "attn.q": [[0, 4.0], [0.3, 4.0], [0.6, 2.0], [1, 1.0]],
    "attn.k": [[0, 1.0], [1, 0.1]],
    "mlp.up": [[0, 5.0], [0.5, 3.0], [0.7, 3.0], [1, 0.5]],
    "mlp.down": [[0, 5.0], [1, 0.5]],
}
N_PARAMETERS = GRID.n_weights() + 20_000


def token_share(unit):
    return Fraction(2, 7) if unit.kind.startswith("mlp") else Fraction(1)


@pytest.fixture(params=Measure)
def target_of(request, tmp_path):
    """The budget of a measure at a sparsity."""
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"seconds": SECONDS}))
    table = str(path) if request.param is Measure.LATENCY else ""
    costs, context = ContextCosts(200, {u.name: 5 for u in UNITS if u.kind == "attn.k"}), 8 * (request.param is Measure.MEMORY)
    return lambda sparsity: Target.of(
        Budget(sparsity, request.param, table, context=context), GRID, N_PARAMETERS, token_share, costs
    )


def test_the_steps_differ_by_more_than_a_factor_of_two():
    assert sorted({GRID.step_weights(unit) for unit in UNITS}) == [64, 75, 160]


@pytest.mark.parametrize("proposer", PROPOSERS)
def test_every_proposal_meets_the_budget_and_no_unit_that_it_prunes_could_give_a_level_back(proposer, target_of):
    for sparsity in (0.2, 0.55):
        target = target_of(sparsity)
        rises = {unit.name: 0.1 + unit.block + i / 10 for i, unit in enumerate(UNITS)}
        space = SearchSpace(GRID, target, rises, MEASURED, AnalyticOracle.of(GRID), measured_items(UNITS))
        proposals = converse(PROPOSERS[proposer], space, seed=1, n_rounds=4)
        assert proposals or proposer == "evolutionary_swaps"
        for allocation in [proposal.allocation for proposal in proposals if not proposal.failure]:
            GRID.check(allocation)
            assert target.is_met(allocation)
            surplus = target.saved(allocation) - target.n_saved
            for levels, level in [(target.levels[name], level) for name, level in allocation.items() if level]:
                assert surplus < levels.saved_at(level) - levels.saved_at(levels.previous(level)) or proposer == "evopress"
