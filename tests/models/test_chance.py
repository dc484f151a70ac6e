import math

import pytest
import torch

from selfprune.data.data_config import DataConfig
from selfprune.data.splits import draw_splits
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.models.chance import doubt_of_chance, unigram_nll
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig

N_VOCABULARY = 1519
SIZES = DataConfig(n_tokens_per_window=64, n_calibration=1, n_search=8, n_report=1)


def zero(model):
    for parameter in model.parameters():
        parameter.zero_()


def inflate(model):
    for name, parameter in model.named_parameters():
        if "_proj" in name:
            parameter.mul_(1e30)


def make_constant(model):
    model.get_output_embeddings().weight.copy_(model.get_output_embeddings().weight[:1].clone())


BROKEN = {"zeros": zero, "weights x 1e30": inflate, "constant": make_constant}


def doubt(damage):
    loaded = load_model(ModelConfig(device="cpu"))
    damage(loaded.model)
    search_NT = draw_splits(SIZES, loaded.tokenizer, 0).search_NT
    evaluator = WindowEvaluator({"score": KLDivergence()}, loaded.model, loaded.blocks, search_NT, batch_size=4)
    return evaluator.dense_nll_per_token, doubt_of_chance(evaluator.dense_nll_per_token, search_NT, N_VOCABULARY)


def test_a_sound_model_is_better_than_chance():
    nll, said = doubt(lambda model: None)
    assert nll == pytest.approx(1.0, abs=0.2)
    assert said is None


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_broken_weights_that_load_are_no_better_than_chance(damage):
    nll, said = doubt(damage)
    assert not nll < math.log(N_VOCABULARY) - 1e-4
    assert "no better than chance: its perplexity is" in said
    assert "guessing evenly among all tokens 1,519" in said


def test_guessing_by_frequency_leaves_the_token_out_of_the_counts_that_guess_it():
    windows_NT = torch.tensor([[9, 1, 1, 2], [9, 1, 3, 3]])
    # of the six that count, three are a 1, two a 3, and one a 2; three kinds mix the even guess of a tenth in
    guessed = {1: (2 + 0.3) / (5 + 3), 3: (1 + 0.3) / (5 + 3), 2: (0 + 0.3) / (5 + 3)}
    expected = -sum(math.log(guessed[token]) for token in (1, 1, 2, 1, 3, 3)) / 6
    assert unigram_nll(windows_NT, 10) == pytest.approx(expected, rel=1e-12)


def test_the_doubt_begins_where_the_better_of_both_guesses_is_as_good():
    windows_NT = torch.randint(0, 4, (8, 65), generator=torch.Generator().manual_seed(0))
    chance = min(unigram_nll(windows_NT, 1000), math.log(1000))
    assert chance == pytest.approx(math.log(4), abs=0.05)
    assert doubt_of_chance(chance - 1e-9, windows_NT, 1000) is None
    assert doubt_of_chance(chance, windows_NT, 1000) is not None
    assert "its perplexity is e^700," in doubt_of_chance(700.0, windows_NT, 1000)
    assert doubt_of_chance(math.nan, windows_NT, 1000) is not None
