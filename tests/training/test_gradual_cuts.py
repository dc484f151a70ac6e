"""Cuts on the way: when they are made, what comes back, and that what is away stays zero."""

import pytest
import torch
from torch import nn

from selfprune.allocations.levels import Levels
from selfprune.errors import ConfigError
from selfprune.runs.rows.students import part_of
from selfprune.training.base import Trained
from selfprune.training.distillation import Distillation
from selfprune.training.gradual_cuts import GradualCuts
from selfprune.training.none import NoTraining
from selfprune.training.schedule import Schedule


def test_sparsity_follows_the_published_cubic_schedule():
    # s_f (1 - (1 - t/nD)^3) of Zhu & Gupta (2017), eq. 1, with s_i = 0
    cuts = Schedule(n_cuts=5, exponent=3, share=0.5).cuts(n_steps=80)
    assert list(cuts) == [0, 10, 20, 30, 40]
    assert list(cuts.values()) == pytest.approx([0.488, 0.784, 0.936, 0.992, 1.0])


def test_iterative_cuts_are_alike_and_one_shot_is_one():
    assert Schedule(n_cuts=4, share=0.75).cuts(100) == {0: 0.25, 25: 0.5, 50: 0.75, 75: 1.0}
    assert Schedule().cuts(100) == {0: 1.0}


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_where_cuts_meet_the_last_counts(n_steps):
    cuts = Schedule(n_cuts=16, exponent=3).cuts(n_steps)
    assert cuts[max(cuts)] == 1.0
    assert max(cuts) < n_steps


@pytest.mark.parametrize("wrong", [{"n_cuts": 0}, {"exponent": 0.5}, {"share": 0.0}, {"share": 1.0}, {"exponent": float("nan")}])
def test_wrong_schedules_are_told(wrong):
    with pytest.raises(ConfigError, match=r"schedule\.share above 0 and below 1, got"):
        Schedule(**wrong)


@pytest.mark.parametrize(
    ("training", "said"), [(NoTraining(), "the whole model learns"), (Distillation(trained=Trained.LORA), "LORA")]
)
def test_cuts_need_a_training_of_the_weights_themselves(training, said):
    training.check_schedule(Schedule())
    with pytest.raises(ConfigError, match=said):
        training.check_schedule(Schedule(n_cuts=2))


class Magnitude:
    """A matrix of which the smallest weights go."""

    def __init__(self):
        self.matrix = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
        self.optimizer = torch.optim.AdamW([self.matrix], lr=0.1, weight_decay=0.1)
        self.cuts = GradualCuts({"matrix": self.matrix}, {0: 0.25, 3: 0.5}, self.cut)

    def cut(self, share):
        smallest = self.matrix.abs().flatten().argsort()[: round(4 * share)]
        self.matrix.view(-1)[smallest] = 0

    def step(self, step, gradient):
        self.cuts.before(step, self.optimizer)
        (self.matrix * torch.tensor(gradient)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def test_what_is_away_stays_zero_whatever_the_optimiser_remembers_and_comes_back_as_it_was():
    model, push = Magnitude(), [[-1.0, -1.0], [20.0, 1.0]]
    for step in range(3):
        model.step(step, push)
        assert model.matrix[0, 0] == 0
    before = model.matrix.detach().clone()
    assert (before[0, 1], before[1, 1]) != (-2.0, 4.0), "what is left learns"
    with torch.no_grad():
        model.matrix[1, 0] = 0.5  # what was large is small by now
        model.matrix[0, 1] = 0.4
    model.step(3, [[0.0, 0.0], [0.0, 0.0]])
    assert model.matrix[0].tolist()[1] == 0
    assert model.matrix[1, 0] == 0
    assert model.matrix[0, 0].item() == pytest.approx(1.0, abs=0.11), "it is larger than those that went"
    for step in range(4, 8):
        model.step(step, push)
        assert model.matrix[0, 1] == model.matrix[1, 0] == 0
    assert model.cuts.n_made == 2


def test_cuts_go_on_from_their_state():
    whole, broken = Magnitude(), Magnitude()
    for step in range(6):
        whole.step(step, [[1.0, 1.0], [1.0, 1.0]])
        broken.step(step, [[1.0, 1.0], [1.0, 1.0]])
        again = Magnitude()
        with torch.no_grad():
            again.matrix.copy_(broken.matrix)
        again.optimizer.load_state_dict(broken.optimizer.state_dict())
        again.cuts.load_state_dict(broken.cuts.state_dict())
        broken = again
    assert torch.equal(whole.matrix, broken.matrix)
    assert broken.cuts.n_made == 2


def test_a_part_of_an_allocation_has_levels_and_units_of_one_level_go_one_after_the_other():
    fine, whole = Levels.even(n_items=10, step=2, n_steps=5, per_item=1), Levels.even(n_items=8, step=4, n_steps=1, per_item=1)
    allocation = {"a": 8, "b": 4, "c": 4, "d": 0}
    levels = {"a": fine, "b": whole, "c": whole, "d": whole}
    assert part_of(allocation, levels, 0.5) == {"a": 4, "b": 4, "c": 0, "d": 0}
    assert part_of(allocation, levels, 0.2) == {"a": 0, "b": 0, "c": 0, "d": 0}
    assert part_of(allocation, levels, 1.0) == allocation
