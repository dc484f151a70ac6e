"""Blocks that learn one after the other come nearer to the dense ones, keep their zeros, and go on where they were broken off."""

import pytest
import torch

from selfprune.errors import ConfigError
from selfprune.models.units import weight_view
from selfprune.training.base import Lesson, Trained
from selfprune.training.blockwise import Blockwise
from selfprune.training.trained_parameters import trained_parameters

WINDOWS_NT = torch.randint(3, 60, (32, 8), generator=torch.Generator().manual_seed(0))
CONFIG = {"n_tokens": 32 * 8 * 20, "n_epochs": 20, "batch_size": 2, "micro_batch": 2, "learning_rate": 1e-2, "rank": 4}


class Stopped(Exception):  # noqa: N818 - a kill, and no error
    pass


@pytest.fixture
def pruned(load_sparse):
    return lambda family="llama": load_sparse(family, 0.6)


def learn(loaded, dense, folder, on_step=lambda *_: None, **changes):
    config = Blockwise(**{**CONFIG, **changes})

    @torch.no_grad()
    def check():
        logits, wanted = (each.model(WINDOWS_NT).logits for each in (loaded, dense))
        return float((logits - wanted).square().mean())

    with trained_parameters(loaded.model, loaded.units, config.trained, config.rank, 0) as parameters:
        return config.train_in_place(loaded, parameters, Lesson(WINDOWS_NT, None, check, dense, 0, folder, on_step))


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
@pytest.mark.parametrize("kind", [Trained.FULL, Trained.HIRA])
def test_outputs_come_nearer_to_the_dense_ones_and_zeros_stay(kind, family, pruned, load_tiny, tmp_path):
    loaded, dense = pruned(family), load_tiny(family)
    before = {name: p.clone() for name, p in dense.model.named_parameters()}
    zeros = {unit.name: weight_view(loaded.model, unit) == 0 for unit in loaded.units}
    course = learn(loaded, dense, tmp_path, trained=kind)
    assert (course.best, len(course.scores)) == (1, 2)
    assert course.scores[1] < 0.8 * course.scores[0]
    assert all(torch.equal(weight_view(loaded.model, unit) == 0, zeros[unit.name]) for unit in loaded.units)
    assert all(torch.equal(p, before[name]) for name, p in dense.model.named_parameters()), "the dense model is left alone"


def test_each_block_tells_an_error_that_falls(pruned, load_tiny, tmp_path):
    told = []
    learn(pruned(), load_tiny("llama"), tmp_path, lambda *step: told.append(step))
    assert [done for done, _ in told] == [1, 2]
    assert Blockwise().n_steps(1000, 2) == 2
    for _, note in told:
        before, after = map(float, note.removeprefix("relative error ").split(" -> "))
        assert after < before


def test_a_block_that_learns_nothing_keeps_its_weights(pruned, load_tiny, tmp_path):
    loaded = pruned()
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    course = learn(loaded, load_tiny("llama"), tmp_path, learning_rate=1e6)
    assert course.best == 0
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())


def test_what_was_killed_after_a_block_ends_with_the_same_weights(pruned, load_tiny, tmp_path):
    whole, again, dense = pruned(), pruned(), load_tiny("llama")
    learn(whole, dense, tmp_path / "whole")

    def stop(*_):
        raise Stopped

    with pytest.raises(Stopped):
        learn(pruned(), dense, tmp_path / "broken", stop)
    course = learn(again, dense, tmp_path / "broken")
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True))
    assert course.best == 1


def test_a_model_that_lost_whole_blocks_is_refused(load_tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"the former has 3 and the latter 2, since whole blocks went; choose training=dist"):
        learn(load_tiny("llama"), load_tiny("llama", num_hidden_layers=3), tmp_path)
