"""Statistics hand out all their tensors and take others in their place, so that they can be kept anywhere."""

import torch
from in_turn import in_turn
from torch import Tensor

from selfprune.statistics.base import NoStatistics
from selfprune.statistics.hessian_factor import HessianFactor
from selfprune.statistics.input_gram import InputGram
from selfprune.statistics.input_moments import InputMoments
from selfprune.statistics.input_squares import InputSquares
from selfprune.statistics.weight_gradients import WeightGradients

N_GROUPS, N_IN = 2, 150


def gathered(kind):
    """Statistics of two groups of rows that were given other inputs."""
    statistics = WeightGradients(N_GROUPS, 2) if kind is WeightGradients else kind(N_GROUPS, N_IN, 3)
    for group in range(N_GROUPS):
        inputs_TI = torch.randn(200, N_IN, generator=torch.Generator().manual_seed(group))
        statistics.update(inputs_TI, group)
    return statistics


def factorised():
    statistics = gathered(HessianFactor)
    statistics.factorise()
    return statistics


def nothing():
    return NoStatistics()


def held(value):
    """All tensors within an object's attributes and the lists in them."""
    values = value if isinstance(value, list) else vars(value).values()
    for each in values:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, list):
            yield from held(each)


MAKE = {kind.__name__: lambda kind=kind: gathered(kind) for kind in (InputSquares, InputMoments, InputGram, HessianFactor)}
MAKE |= {"WeightGradients": lambda: gathered(WeightGradients), "factorised": factorised, "nothing": nothing}


@in_turn("make", MAKE.values(), ids=MAKE)
def test_no_tensor_is_left_out_and_each_comes_back_to_its_place(make):
    statistics = make()
    assert {id(tensor) for tensor in held(statistics)} == {id(tensor) for tensor in statistics.tensors()}
    emptied = statistics.with_tensors([torch.empty(0)] * len(statistics.tensors()))
    assert all(not tensor.numel() for tensor in held(emptied))
    copied = emptied.with_tensors([tensor.clone() for tensor in statistics.tensors()])
    assert type(copied) is type(statistics)
    for ours, theirs in zip(held(copied), held(statistics), strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs or not ours.numel()
    assert copied.unseen().tolist() == statistics.unseen().tolist()


def test_a_factor_that_was_put_back_solves_as_before():
    statistics = factorised()
    copied = statistics.with_tensors([tensor.clone() for tensor in statistics.tensors()])
    assert torch.equal(copied.inverse_diagonal(), statistics.inverse_diagonal())
    assert torch.equal(copied.block(1, 100, 140), statistics.block(1, 100, 140))
    assert torch.equal(copied.means(), statistics.means())
