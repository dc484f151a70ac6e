"""Sums, squares and variances of the inputs against their definitions in double precision.

Shape suffixes: I in, N sequences, T tokens, G groups of rows.
"""

import torch
from in_turn import in_turn

from selfprune.statistics.input_moments import InputMoments

N_IN = 24
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(n_in=N_IN, seed=1, n_sequences=3, n_tokens=5):
    """Channels of different means and spreads."""
    return normal(n_sequences, n_tokens, n_in, seed=seed) * normal(n_in, seed=seed + 100).exp() + normal(n_in, seed=seed + 200)


def gathered(inputs_NTI):
    statistics = InputMoments(1, inputs_NTI.shape[-1], len(inputs_NTI))
    statistics.update(inputs_NTI)
    return statistics


@in_turn("dtype", DTYPES)
def test_they_are_sums_per_sequence_and_variances_within_them(dtype):
    sequences = [inputs(6, seed=n, n_sequences=1, n_tokens=3 + 4 * n)[0].to(dtype) for n in range(3)]
    statistics = InputMoments(1, 6, 3)
    for sequence_TI in sequences:
        statistics.update(sequence_TI)
    tokens_TI = torch.cat(sequences).double()
    distances_TI = torch.cat([sequence_TI.double() - sequence_TI.double().mean(dim=0) for sequence_TI in sequences])
    expected = (tokens_TI.square().sum(dim=0) / 3, tokens_TI.sum(dim=0) / 3, distances_TI.square().sum(dim=0) / len(tokens_TI))
    ours = (statistics.means(), statistics.mean_totals(), statistics.variances())
    for tensor_GI, expected_I in zip(ours, expected, strict=True):
        assert tensor_GI.dtype is torch.float32
        torch.testing.assert_close(tensor_GI[0].double(), expected_I, rtol=1e-5, atol=1e-5)


def test_they_are_the_same_batch_by_batch_and_sequence_by_sequence():
    inputs_NTI = inputs(n_sequences=4)
    one_by_one = InputMoments(1, N_IN, 4)
    for sequence_TI in inputs_NTI:
        one_by_one.update(sequence_TI)
    nested = InputMoments(1, N_IN, 4)
    nested.update(inputs_NTI.view(2, 2, 5, N_IN))
    for other in (one_by_one, nested):
        for method in (InputMoments.means, InputMoments.mean_totals, InputMoments.variances):
            torch.testing.assert_close(method(gathered(inputs_NTI)), method(other), rtol=1e-5, atol=1e-6)


def test_shifts_between_sequences_are_no_variance():
    inputs_NTI = inputs(n_sequences=4)
    shifted_NTI = inputs_NTI + torch.arange(4.0)[:, None, None]
    torch.testing.assert_close(gathered(shifted_NTI).variances(), gathered(inputs_NTI).variances(), rtol=1e-4, atol=1e-5)
    assert (gathered(shifted_NTI).mean_totals() > gathered(inputs_NTI).mean_totals()).all()


def test_of_groups_without_inputs_the_variances_are_zero():
    statistics = InputMoments(2, 8, 1)
    statistics.update(torch.zeros(0, 8), 0)
    statistics.update(inputs(8, n_sequences=1)[0], 1)
    assert statistics.variances()[0].tolist() == [0.0] * 8
