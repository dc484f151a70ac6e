"""Cuts that are made while a model learns, after which weights that went may come back.

What is cut is kept aside as it was. Before the next cut all of it returns, so that the pruner decides anew, by statistics of the
model as it is by then, as masks are drawn anew in dynamic network surgery (Guo et al., 2016, arXiv 1608.04493); what stays away
keeps its last value.

Limits: the weights that were cut do not learn while they are away; a copy of every pruned matrix is in memory.

Shape suffixes: R rows, C columns.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of every weight; it would move a weight that has no gradient any more."""


class GradualCuts:
    """What the matrices of a model lost so far, and will lose.

    Args:
        matrices: name -> what cuts change.
        shares: step before which there is a cut -> share of what is to go that is gone then.
        cut: prunes the model, all of which is there, to a share.

    Attributes:
        n_made: cuts so far.
    """

    def __init__(self, matrices: Mapping[str, nn.Parameter], shares: Mapping[int, float], cut: Callable[[float], object]) -> None:
        self.n_made = 0
        self._matrices, self._shares, self._cut = matrices, shares, cut
        self._aside: dict[str, Tensor] = {}
        self._gone: dict[str, Tensor] = {}
        for name, matrix in matrices.items():
            matrix.register_hook(partial(self._without, name))  # type: ignore[no-untyped-call]

    @property
    def last(self) -> int:
        """The step before which there is the last cut."""
        return max(self._shares)

    def before(self, step: int, optimizer: torch.optim.Optimizer) -> bool:
        """Makes the cut of a step, where it has one.

        Args:
            step: that follows.
            optimizer: forgets what it knew of weights that go.

        Returns:
            whether there was one.
        """
        if step in self._shares:
            self._make(self._shares[step], optimizer)
        return step in self._shares

    def finish(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the last cut now."""
        self._make(1.0, optimizer)

    def state_dict(self) -> dict[str, Any]:
        """What a training goes on from, besides the weights."""
        return {"n_made": self.n_made, "aside": self._aside, "gone": self._gone}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.n_made = int(state["n_made"])
        self._aside, self._gone = (
            {name: tensor.to(self._matrices[name].device) for name, tensor in state[kept].items()} for kept in ("aside", "gone")
        )

    @torch.no_grad()
    def _make(self, share: float, optimizer: torch.optim.Optimizer) -> None:
        for name, gone_RC in self._gone.items():
            self._matrices[name].copy_(torch.where(gone_RC, self._aside[name], self._matrices[name]))
        self._gone = {}
        self._aside = {name: matrix.detach().clone() for name, matrix in self._matrices.items()}
        self._cut(share)
        self._gone = {name: matrix == 0 for name, matrix in self._matrices.items()}
        for name, gone_RC in self._gone.items():
            known = optimizer.state.get(self._matrices[name], {})
            for moment in MOMENTS:
                if moment in known:
                    known[moment].masked_fill_(gone_RC, 0)
        optimizer.zero_grad(set_to_none=True)
        self.n_made += 1

    def _without(self, name: str, gradient_RC: Tensor) -> Tensor:
        return gradient_RC.masked_fill(self._gone[name], 0) if name in self._gone else gradient_RC
