import pytest
import torch
from torch.nn.functional import cross_entropy

from selfprune.models.blocks import walk
from selfprune.models.blocks.walk import nll_per_token
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig, Placement

WINDOWS_NT = torch.randint(5, 60, (5, 9), generator=torch.Generator().manual_seed(0))


def test_the_likelihood_of_a_walk_is_that_of_the_whole_model(family, tiny_model_folder, load_tiny, monkeypatch, tmp_path):
    whole = load_tiny(family)
    model = whole.model
    expected = cross_entropy(model(input_ids=WINDOWS_NT).logits[:, :-1].flatten(0, 1), WINDOWS_NT[:, 1:].flatten())
    # three positions at once, so that the last piece of a window is a shorter one
    monkeypatch.setattr(walk, "N_LOGITS_AT_ONCE", 3 * model.config.get_text_config().vocab_size + 1)
    streamed = load_model(ModelConfig(str(tiny_model_folder(family)), device="cpu", placement=Placement.STREAM), tmp_path)
    for loaded in (whole, streamed):
        assert nll_per_token(loaded, WINDOWS_NT, batch_size=2) == pytest.approx(float(expected), rel=1e-5), loaded.device
