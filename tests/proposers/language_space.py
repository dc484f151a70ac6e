"""A search space of Llama's kinds, and a scripted language model that keeps what it was asked."""

import math

from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.language_models.base import Reply
from selfprune.language_models.scripted import ScriptedLanguageModel
from selfprune.proposers.base import SearchSpace

SIZES = {
    "self_attn.q_proj": 3600,
    "self_attn.k_proj": 1200,
    "self_attn.v_proj": 1200,
    "self_attn.o_proj": 3600,
    "mlp.gate_proj": 10800,
    "mlp.up_proj": 10800,
    "mlp.down_proj": 10800,
}
SHORT = ["q", "k", "v", "o", "gate", "up", "down"]


def make_space(n_blocks=4, sparsity=0.6, with_sensitivities=True):
    units = [Unit(f"layers.{b}.{kind}", b, kind, n) for b in range(n_blocks) for kind, n in SIZES.items()]
    grid = LevelGrid.with_constant_step(units, fraction_of_smallest=0.05, max_sparsity=0.95)
    rises = {unit.name: 1.0 + unit.block + 0.1 * i for i, unit in enumerate(units)}
    return SearchSpace(grid, Target.in_weights(grid, math.ceil(sparsity * grid.n_weights())), rises if with_sensitivities else {})


SPACE = make_space()
ALLOCATION = SPACE.project({unit.name: 0.5 + 0.05 * unit.block for unit in SPACE.grid.units})


class Script:
    """Answers with texts in their order; tells no probabilities, unless it is given some for every option."""

    name = "script"

    def __init__(self, texts, logprobs_of=None):
        self.model = ScriptedLanguageModel.from_texts(texts)
        self.logprobs_of = logprobs_of
        self.asked = []

    def complete(self, prompt, schema, n, seed):
        self.asked.append((prompt, schema, n, seed))
        return self.model.complete(prompt, schema, n, seed)

    def score(self, prompt, options):
        self.asked.append((prompt, options, len(options), None))
        logprobs = self.logprobs_of(prompt, options) if self.logprobs_of else [None] * len(options)
        return [
            Reply(option, logprob, 9, 3, source=(0, i)) for i, (option, logprob) in enumerate(zip(options, logprobs, strict=True))
        ]


def candidate(id_, score, allocation=ALLOCATION, proposer="random", state=State.COMPLETE, gain=None):
    return Candidate(id_, "main", Proposal(allocation, proposer), state, score=score, gain=gain)


def assert_on_budget(allocation, space=SPACE):
    space.grid.check(allocation)
    surplus = space.grid.n_removed_weights(allocation) - space.target.n_weights
    assert 0 <= surplus < min(space.grid.step_weights(unit) for unit in space.grid.units)
