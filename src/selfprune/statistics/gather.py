"""Feeds the inputs of units to their statistics while a model runs; units with the same input share one accumulator.

Shape suffixes: E experts, O out, I in, T tokens, P places among a token's experts, K tokens of an expert.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from selfprune.allocations.unit import Unit
from selfprune.errors import ModelError
from selfprune.statistics.base import Statistics
from selfprune.statistics.routed_outputs import RoutedOutputs

MakeStatistics = Callable[[Unit], Statistics]
OnInputs = Callable[[Unit, Tensor, int], None]
"""Is told of inputs [..., I] that a unit was given, and which group of its rows they feed."""


@contextmanager
def gather(
    model: nn.Module, units: list[Unit], make: MakeStatistics, on_inputs: OnInputs = lambda unit, inputs, row_group: None
) -> Iterator[dict[str, Statistics]]:
    """While open, every forward pass feeds the inputs of these units to statistics.

    Linear layers that are given the very same tensor (queries, keys and values; gate and up) get the same object, which is
    fed once: so is their Hessian gathered, stored and factorised once.

    Args:
        model: the model, or the block that runs.
        units: the units to watch.
        make: an empty accumulator for a unit.
        on_inputs: told of everything that any of the units is given.

    Returns:
        unit name -> statistics, complete when the context closes.

    Raises:
        ModelError: at the end, when fused experts ran in a way that hides their inputs.
    """
    statistics: dict[str, Statistics] = {}
    sharing = _Sharing(statistics, make, on_inputs)
    experts: list[tuple[Tensor, Unit, Statistics]] = []
    with ExitStack() as stack:
        for unit in units:
            owner = _module_or_parameter(model, unit.matrix)
            if isinstance(owner, nn.Module):
                stack.callback(owner.register_forward_pre_hook(sharing.hook(unit)).remove)
            else:
                statistics[unit.name] = make(unit)
                experts.append((owner, unit, statistics[unit.name]))
        seen = stack.enter_context(_ExpertInputs(experts, on_inputs)) if experts else None
        for owner, unit, of_unit in experts:
            if seen is not None and isinstance(of_unit, RoutedOutputs):
                module = model.get_submodule(unit.matrix.rpartition(".")[0])
                stack.callback(module.register_forward_pre_hook(seen.routing_hook(owner)).remove)
        yield statistics
    sharing.check()
    if seen is not None and seen.n_seen == 0:
        raise ModelError(
            f"the inputs of the fused experts {', '.join(unit.name for unit in units)} could not be seen: their layer does not "
            f"use torch.nn.functional.linear; load the model with experts_implementation='eager'"
        )
    for unit in units:
        statistics.setdefault(unit.name, make(unit))


_PRODUCTS = (nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
"""How layers of experts multiply tokens with a weight, their second argument."""


class _Sharing:
    """Decides in the first pass which unit shares whose statistics, and holds every later pass to it."""

    def __init__(self, statistics: dict[str, Statistics], make: MakeStatistics, on_inputs: OnInputs) -> None:
        self.statistics = statistics
        self.make = make
        self.on_inputs = on_inputs
        self.leader_of: dict[str, str] = {}
        self.inputs: dict[str, tuple[Tensor, int]] = {}
        self.n_seen: dict[str, int] = {}

    def hook(self, unit: Unit) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def update(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self.see(unit, arguments[0])

        return update

    def see(self, unit: Unit, inputs: Tensor) -> None:
        """Takes note of a unit's input in one pass."""
        self.on_inputs(unit, inputs, 0)
        # the version tells whether a tensor was changed in place
        own = (inputs, inputs._version)
        if unit.name not in self.leader_of:
            same = (name for name, seen in self.inputs.items() if seen[0] is inputs and seen[1] == own[1])
            # one that has seen more than this one input cannot be shared
            leader = next((name for name in same if self.n_seen[name] == 1), unit.name)
            self.leader_of[unit.name] = leader
            self.statistics[unit.name] = self.statistics[leader] if leader != unit.name else self.make(unit)
        self.n_seen[unit.name] = self.n_seen.get(unit.name, 0) + 1
        leader = self.leader_of[unit.name]
        if leader == unit.name:
            self.inputs[unit.name] = own
            self.statistics[unit.name].update(inputs)
        elif self.inputs[leader][0] is not inputs or self.inputs[leader][1] != own[1]:
            self._refuse(unit.name, leader)

    def check(self) -> None:
        """Checks that units that share ran equally often.

        Raises:
            ModelError: when they did not.
        """
        for name, leader in self.leader_of.items():
            if self.n_seen[name] != self.n_seen[leader]:
                self._refuse(name, leader)

    def _refuse(self, name: str, leader: str) -> None:
        raise ModelError(
            f"{name} had the same input as {leader} in one forward pass and another in the next; selfprune cannot "
            "gather statistics of this architecture"
        )


class _ExpertInputs(TorchFunctionMode):
    """Sees the inputs of fused experts: linear maps whose weight is a slice of a three-dimensional parameter, or all of it."""

    def __init__(self, watched: list[tuple[Tensor, Unit, Statistics]], on_inputs: OnInputs) -> None:
        super().__init__()
        self.watched = watched
        self.on_inputs = on_inputs
        self.n_seen = 0
        self._routing: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            for parameter_EOI, unit, statistics in self.watched:
                offset = args[1].data_ptr() - parameter_EOI.data_ptr()
                if 0 <= offset < parameter_EOI.numel() * parameter_EOI.element_size():
                    self.n_seen += 1
                    if args[1].dim() == 3:  # every expert with as many tokens, of which those that are not sent to it are zero
                        for expert, inputs_TI in enumerate(args[0]):
                            sent_KI = inputs_TI[inputs_TI.any(dim=1)]
                            self.on_inputs(unit, sent_KI, expert)
                            statistics.update(sent_KI, expert)
                        break
                    expert = offset // (parameter_EOI.stride(0) * parameter_EOI.element_size())
                    self.on_inputs(unit, args[0], expert)
                    if isinstance(statistics, RoutedOutputs):
                        outputs_KO = func(*args, **(kwargs or {}))
                        statistics.update(self._routed(parameter_EOI, expert, outputs_KO), expert)
                        return outputs_KO
                    statistics.update(args[0], expert)
        return func(*args, **(kwargs or {}))

    def routing_hook(self, parameter_EOI: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """Takes note of which tokens a module of experts is sent, and how much each expert counts."""

        def note(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._routing[id(parameter_EOI)] = arguments[1:3]

        return note

    def _routed(self, parameter_EOI: Tensor, expert: int, outputs_KO: Tensor) -> Tensor:
        """G · ‖f(x)‖ [K, 1] of the tokens of an expert, which come in the order of their places among the chosen."""
        index_TP, weights_TP = self._routing[id(parameter_EOI)]
        place_K, token_K = (index_TP == expert).T.nonzero(as_tuple=True)
        routed_K: Tensor = weights_TP[token_K, place_K].float() * outputs_KO.float().norm(dim=1)
        return routed_K[:, None]


def _module_or_parameter(model: nn.Module, name: str) -> nn.Module | Tensor:
    parent, _, leaf = name.rpartition(".")
    owner: nn.Module | Tensor = getattr(model.get_submodule(parent), leaf)
    return owner
