"""Influence and alikeness of blocks, against what they are by definition."""

import pytest
import torch

from selfprune.pruning.block_numbers import N_WINDOWS, linear_cka, look_at_blocks


def test_alikeness_is_one_for_a_rotation_and_a_scale_and_small_for_what_is_unrelated():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, 500, 6, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    assert linear_cka(states, 3 * states @ rotation + 1) == pytest.approx(1, abs=1e-5)
    assert linear_cka(states, torch.randn(4, 500, 6, generator=generator)) < 0.02
    assert linear_cka(states, torch.ones(4, 500, 6)) == 0


def test_alikeness_is_that_of_centred_kernels():
    """HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L)) of the Gram matrices, the other way to write it."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(1, 30, 5, generator=generator), torch.randn(1, 30, 4, generator=generator)
    centre = torch.eye(30) - 1 / 30
    one, other = (centre @ states[0] @ states[0].T @ centre for states in (x, y))
    assert linear_cka(x, y) == pytest.approx(float((one * other).sum() / (one.norm() * other.norm())), rel=1e-4)


def test_every_block_is_looked_at_on_the_first_windows_alone(load_tiny):
    loaded = load_tiny("llama")
    windows = torch.randint(3, 50, (N_WINDOWS + 2, 16), generator=torch.Generator().manual_seed(0))
    found = look_at_blocks(loaded, windows, 4)
    assert found == look_at_blocks(loaded, windows[:N_WINDOWS], 4)
    hidden = loaded.model(windows[:N_WINDOWS], output_hidden_states=True).hidden_states
    cosine = torch.cosine_similarity(hidden[0].float(), hidden[1].float(), dim=-1).mean()
    assert found["influence"][0] == pytest.approx(1 - float(cosine), abs=1e-4)
    assert set(found["alikeness"]) == set(range(len(loaded.blocks)))
