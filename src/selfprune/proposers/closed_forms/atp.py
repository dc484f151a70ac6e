"""ATP: sparsities in an arithmetic progression over depth (Huang et al., 2025, arXiv 2502.14770).

Errors of early blocks grow on their way through the model, so these are pruned less: s_i = S + β·(i − (L − 1)/2) for the blocks
i = 0..L−1. One number is left to choose, the slope β, in 0 < β ≤ 2·min(S, 1 − S)/(L − 1), where no sparsity leaves [0, 1].

Limits: one number per block, and the blocks' own statistics are not looked at.
"""

from dataclasses import dataclass

from selfprune.allocations.candidate import Proposal
from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel
from selfprune.proposers.base import ClosedForm, FixedProposals, Proposer, SearchSpace

TOLERANCE = 1e-9


@dataclass
class ATP(ClosedForm):
    """One slope, or a grid of them for a search to choose from; as a yardstick without a slope, the middle of the grid.

    Attributes:
        slope: β, the difference of sparsity from one block to the next; the whole grid when null.
        step: the grid holds the multiples of this slope; the paper uses 0.002, which makes nine at 70% of 32 blocks.
        max_slopes: of a longer grid, that of a shallow model, so many slopes are taken at even distances.
    """

    slope: float | None = None
    step: float = 0.002
    max_slopes: int = 9

    def __post_init__(self) -> None:
        if (self.slope is not None and not 0 <= self.slope <= 1) or not 0 < self.step <= 1 or self.max_slopes < 1:
            raise ConfigError(
                "ATP needs a slope in [0, 1] or null, step in (0, 1] and max_slopes of at least 1, "
                f"got {self.slope}, {self.step} and {self.max_slopes}; the paper's step is 0.002"
            )

    def sparsities(self, space: SearchSpace) -> dict[str, float]:
        """The progression of the slope, or of the middle of the grid where there is none.

        Raises:
            ConfigError: when the slope leads out of [0, 1].
        """
        return _progression(space, self.slopes(space)[0])

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """A proposer that says one allocation per slope, and none twice.

        Raises:
            ConfigError: when the slope leads out of [0, 1].
        """
        proposals: dict[tuple[int, ...], Proposal] = {}
        for slope in self.slopes(space):
            allocation = space.project(_progression(space, slope))
            proposals.setdefault(space.grid.genome(allocation), Proposal(allocation, self.name, f"slope={slope:g}"))
        return FixedProposals(self.name, list(proposals.values()))

    def slopes(self, space: SearchSpace) -> list[float]:
        """The slopes, those in the middle of the grid first: there the paper's best ones lie.

        Raises:
            ConfigError: when the slope leads out of [0, 1].
        """
        n_blocks = len(_blocks(space))
        steepest = 2 * min(space.target_sparsity, 1 - space.target_sparsity) / (n_blocks - 1) if n_blocks > 1 else 0.0
        if self.slope is not None:
            # A single block has no depth for a slope to act on.
            if n_blocks > 1 and self.slope > steepest + TOLERANCE:
                raise ConfigError(
                    f"the slope of ATP must lie in [0, {steepest:.4g}], lest a block of {n_blocks} at a mean sparsity of "
                    f"{space.target_sparsity:.4g} leaves [0, 1], got {self.slope}; lower it or leave it null for the whole grid"
                )
            return [self.slope]
        n_steps = int(steepest / self.step + TOLERANCE)
        n_slopes = min(n_steps, self.max_slopes)
        slopes = [round(i * (n_steps + 1) / (n_slopes + 1)) * self.step for i in range(1, n_slopes + 1)] or [steepest / 2]
        return sorted(slopes, key=lambda slope: (round(abs(slope - slopes[(len(slopes) - 1) // 2]) / self.step), slope))


def _blocks(space: SearchSpace) -> list[int]:
    return sorted({unit.block for unit in space.grid.units})


def _progression(space: SearchSpace, slope: float) -> dict[str, float]:
    """Unit name -> S + β·(i − (L − 1)/2), i being the position of its block among the blocks that have units."""
    blocks = _blocks(space)
    position = {block: i - (len(blocks) - 1) / 2 for i, block in enumerate(blocks)}
    return {unit.name: space.target_sparsity + slope * position[unit.block] for unit in space.grid.units}
