import pytest
import torch
from torch.nn.functional import cross_entropy

from selfprune.models.blocks import walk
from selfprune.models.blocks.walk import nll_per_token
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig, Placement

WINDOWS_NT = torch.randint(5, 60, (5, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("placement", [Placement.WHOLE, Placement.STREAM])
def test_the_likelihood_of_a_walk_is_that_of_the_whole_model(family, placement, tiny_model_folder, monkeypatch, tmp_path):
    path = str(tiny_model_folder(family))
    whole = load_model(ModelConfig(path, device="cpu")).model
    expected = cross_entropy(whole(input_ids=WINDOWS_NT).logits[:, :-1].flatten(0, 1), WINDOWS_NT[:, 1:].flatten())
    # three positions at once, so that the last piece of a window is a shorter one
    monkeypatch.setattr(walk, "N_LOGITS_AT_ONCE", 3 * whole.config.get_text_config().vocab_size + 1)
    loaded = load_model(ModelConfig(path, device="cpu", placement=placement), tmp_path)
    assert nll_per_token(loaded, WINDOWS_NT, batch_size=2) == pytest.approx(float(expected), rel=1e-5)
