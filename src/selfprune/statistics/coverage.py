"""Which weights calibration reached: the tokens that each unit, and each expert of a fused one, was given."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from selfprune.allocations.unit import Unit
from selfprune.models.loading import LoadedModel
from selfprune.models.units import n_row_groups, weight_view

N_NAMED = 4
"""Weight matrices that a warning names before it only counts them."""


class Coverage:
    """The calibration tokens that reached each unit.

    Args:
        loaded: the model that is calibrated.

    Attributes:
        n_tokens_of: unit name -> tokens for each group of rows with inputs of its own (an expert), one number for a Linear; None
            where a pruner that takes gradients cannot tell how many came.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.n_tokens_of: dict[str, list[int | None]] = {u.name: [0] * n_row_groups(loaded.model, u) for u in loaded.units}
        self._widths = {unit.name: weight_view(loaded.model, unit).shape[1] for unit in loaded.units}

    def add(self, unit: Unit, inputs: Tensor, row_group: int) -> None:
        """Counts the tokens of inputs [..., I] that a unit was given."""
        n_before = self.n_tokens_of[unit.name][row_group] or 0
        self.n_tokens_of[unit.name][row_group] = n_before + inputs.shape[:-1].numel()

    def note_gradients(self, unit: Unit, unseen_G: Tensor) -> None:
        """Takes down which groups of rows had a gradient, which is all that is known without their inputs."""
        self.n_tokens_of[unit.name] = [0 if is_unseen else None for is_unseen in unseen_G.tolist()]

    def warn(self, tell: Callable[[str], None], when: str, told: "Coverage | None" = None) -> None:
        """Tells which weights saw nothing, and which experts saw fewer tokens than they have inputs; a paragraph each.

        Args:
            tell: is given each paragraph.
            when: during what, as in "calibration".
            told: of whose matrices this was told already.
        """
        n_matrices = sum(len(counts) for counts in self.n_tokens_of.values())
        unseen = [name for name in self._unseen() if told is None or name not in told._unseen()]
        few = [each for name, each in self._few().items() if told is None or name not in told._few()]
        if unseen:
            tell(
                f"in {when} no token reached {len(unseen)} of {n_matrices} weight matrices: {_some(unseen)}; of these the "
                "smallest weights go (magnitude), whatever the pruner. Experts that the router never chose need more text "
                "(data.n_calibration) or text of another kind; weights that a kernel reads without calling their layer, as "
                "Mamba's dt_proj, cannot be seen"
            )
        if few:
            counts = [
                f"{name} ({n_tokens} tokens, {n_in} inputs)"
                for name, n_tokens, n_in in sorted(few, key=lambda each: each[1] or 0)
            ]
            tell(
                f"in {when} experts saw fewer tokens than they have inputs, in {len(few)} of {n_matrices} weight matrices: "
                f"{_some(counts)}; what the pruner knows of their inputs is incomplete, so give more text (data.n_calibration)"
            )

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the most tokens that reached any unit, and the tokens of the units, or experts, that fewer reached."""
        most = self._most()
        fewer = {
            name: counts if len(counts) > 1 else counts[0]
            for name, counts in self.n_tokens_of.items()
            if any(n_tokens is not None and n_tokens < most for n_tokens in counts) or 0 in counts
        }
        return {"n_tokens": most or None, "fewer_reached": fewer}

    def _most(self) -> int:
        """The most tokens that reached any unit."""
        return max(n_tokens or 0 for counts in self.n_tokens_of.values() for n_tokens in counts)

    def _unseen(self) -> list[str]:
        return [name for name, n_tokens, _ in self._matrices() if n_tokens == 0]

    def _few(self) -> dict[str, tuple[str, int | None, int]]:
        """Those that fewer tokens reached than they have inputs; how many all units see is the user's choice."""
        most = self._most()
        return {each[0]: each for each in self._matrices() if each[1] and each[1] < min(each[2], most)}

    def _matrices(self) -> Sequence[tuple[str, int | None, int]]:
        """Name, tokens and input width of every Linear and every fused expert."""
        return [
            (f"{name}[{group}]" if len(counts) > 1 else name, n_tokens, self._widths[name])
            for name, counts in self.n_tokens_of.items()
            for group, n_tokens in enumerate(counts)
        ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return ", ".join(names[:N_NAMED]) + more
