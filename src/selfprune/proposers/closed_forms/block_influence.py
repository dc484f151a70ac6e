"""Block influence: blocks that hardly change their input go (ShortGPT, Men et al., 2024, arXiv 2403.03853).

Limits: made for pruning in depth (`pruner.whole=true`), where it drops whole blocks until the budget is met, of the last perhaps
the attention alone. Every block is judged in the dense model, as if the others stayed. With other levels it prunes by degrees.

Shape suffixes: N sequences, T tokens, D hidden width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfprune.proposers.base import ClosedForm, HiddenMeasurement, Measurement, SearchSpace


@dataclass(frozen=True)
class BlockInfluence(HiddenMeasurement):
    """BI = 1 − the mean over tokens of the cosine between the hidden states before and after a block (eq. 1)."""

    def of_block(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
        """BI of one block."""
        pairs = zip(inputs, outputs, strict=True)
        cosines = torch.cat([torch.cosine_similarity(i.float(), o.to(i.device).float(), dim=-1).flatten() for i, o in pairs])
        return 1 - float(cosines.double().mean())


@dataclass
class LeastInfluence(ClosedForm):
    """The blocks of least influence first."""

    @property
    def name(self) -> str:
        """As its file."""
        return "block_influence"

    def measurements(self) -> list[Measurement]:
        """BI."""
        return [BlockInfluence()]

    def sparsities(self, space: SearchSpace) -> dict[str, float]:
        """The rank of the block's influence from the highest, as a fraction of all blocks (§3.2); not finite counts as highest.

        Raises:
            ConfigError: when the influences were not measured.
        """
        influences = self.measured(space)
        order = sorted(influences, key=lambda block: -influences[block] if math.isfinite(influences[block]) else -math.inf)
        rank = {block: place / len(order) for place, block in enumerate(order)}
        return {unit.name: rank[unit.block] for unit in space.grid.units}
