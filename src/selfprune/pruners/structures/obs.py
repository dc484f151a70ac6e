"""Structured OBS: the item goes whose loss the others can best make up for (ZipLM, Kurtic et al., 2023, arXiv 2302.04089).

One structure after the other is removed, each time the one that costs least once the rest is fitted anew.

Limits: structures go in rounds, and not one by one, since every round costs a pass over the inverse Gram matrix, I² numbers. In
a round they are judged as if each went alone.

Shape suffixes: O out, I in, C items, W columns per item, R columns that go in a round.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.pruners.refit import damped, fit_kept
from selfprune.pruners.structure_pruner import StructurePruner
from selfprune.statistics.base import Statistics
from selfprune.statistics.input_gram import InputGram


@dataclass
class OBS(StructurePruner):
    """tr(W_c [H⁻¹]_cc⁻¹ W_cᵀ), with weights and inverse brought up to date after every round.

    Attributes:
        n_rounds: into how many rounds the items of a unit are dealt; as many as items gives the published one by one.
        percent_damping: of the inputs' inner products, as a share of the mean of their diagonal.
    """

    n_rounds: int = 64
    percent_damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_rounds < 1:
            raise ConfigError(f"pruner.n_rounds must be 1 or more, got {self.n_rounds}")
        if not 0 <= self.percent_damping <= 1:
            raise ConfigError(f"pruner.percent_damping must lie in [0, 1], got {self.percent_damping}")

    @property
    def builds_levels(self) -> bool:
        """Its masks alone would show other damage than the weights that are fitted."""
        return True

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """The inner products of the inputs."""
        return InputGram(n_row_groups, n_in, n_sequences)

    def scores(self, weight_OCW: Tensor, statistics: Statistics) -> Tensor:
        """The place of each item [C] in the order in which they go."""
        assert isinstance(statistics, InputGram)
        _, n_items, width = weight_OCW.shape
        weight_OI = weight_OCW.flatten(1).float().clone()
        gram_II = damped(statistics.sums()[0].to(weight_OI.device), self.percent_damping)
        inverse_II = torch.linalg.inv(gram_II.double()).float()
        places_C = torch.full((n_items,), torch.inf, device=weight_OI.device)
        columns_CW = torch.arange(n_items * width, device=weight_OI.device).view(n_items, width)
        per_round = max(1, -(-n_items // self.n_rounds))
        for start in range(0, n_items, per_round):
            left_C = torch.isinf(places_C).nonzero().flatten()
            own_CW = columns_CW[left_C]
            corners_CWW = inverse_II[own_CW[:, :, None], own_CW[:, None, :]]
            own_COW = weight_OI[:, own_CW].transpose(0, 1)
            # tr(W_c [H⁻¹]_cc⁻¹ W_cᵀ), by a solve in place of an inverse
            solved_CWO = torch.linalg.solve(corners_CWW.double(), own_COW.transpose(1, 2).double())
            costs_C = (own_COW.transpose(1, 2) * solved_CWO).sum(dim=(1, 2))
            order_C = costs_C.argsort(stable=True)[:per_round]
            goes_C = left_C[order_C]
            places_C[goes_C] = start + torch.arange(len(goes_C), device=weight_OI.device, dtype=places_C.dtype)
            r = columns_CW[goes_C].flatten()
            rows_RI = torch.linalg.solve(inverse_II[r][:, r].double(), inverse_II[r].double()).float()
            weight_OI -= weight_OI[:, r] @ rows_RI
            inverse_II -= inverse_II[:, r] @ rows_RI
        return places_C

    def fitted(self, weight_OCW: Tensor, statistics: Statistics, kept_C: Tensor) -> Tensor:
        """The reader once what stays is fitted to the output of the whole, in one step: where the rounds end, too."""
        assert isinstance(statistics, InputGram)
        kept_I = kept_C.repeat_interleave(weight_OCW.shape[2])
        return fit_kept(weight_OCW.flatten(1), statistics.sums()[0], kept_I, self.percent_damping)
