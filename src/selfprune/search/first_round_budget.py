"""What a search needs before it can give anything: a budget that does not pay for it is refused before anything is spent."""

from selfprune.errors import ConfigError
from selfprune.proposers.base import ProposerConfig
from selfprune.search.gradient_values import n_look_tokens
from selfprune.search.search_config import SearchConfig


def first_round_needs(
    config: SearchConfig,
    first_looks: tuple[int, int],
    n_windows: int,
    n_tokens_per_window: int,
    n_yardsticks: int = 0,
    n_units: int = 0,
) -> dict[str, int]:
    """What comes before the first scores of a search, and these -> its tokens.

    Args:
        config: of the search.
        first_looks: those of its proposer.
        n_windows: search windows.
        n_tokens_per_window: tokens of every one.
        n_yardsticks: known allocations that race first.
        n_units: units that are pruned alone first, if any are.
    """
    ladder = config.ladder
    n_looks, n_valued = first_looks
    parts = {
        f"the sensitivities of {n_units:,} units": n_units * config.n_sensitivity_windows,
        f"{n_yardsticks} yardsticks": n_yardsticks * ladder.rungs[0],
        f"gradients at {n_looks} allocations": n_looks * n_look_tokens(min(n_valued, n_windows), 1),
        f"the first rung of {config.n_per_round} candidates": config.n_per_round * ladder.rungs[0],
    }
    return {what: n * n_tokens_per_window for what, n in parts.items() if n}


def check_first_round(
    search: str,
    config: SearchConfig,
    proposer: ProposerConfig,
    n_windows: int,
    n_tokens_per_window: int,
    n_yardsticks: int = 0,
    n_units: int = 0,
) -> None:
    """Checks that the tokens of a search pay for what comes before its first scores, and for these.

    Args:
        search: its name, `main` or that of a control.
        config: what it may spend.
        proposer: who is asked.
        n_windows: search windows.
        n_tokens_per_window: tokens of every one.
        n_yardsticks: known allocations that race first.
        n_units: units that are pruned alone first, if any are.

    Raises:
        ConfigError: with what the first round needs, when it is more.
    """

    def needed(first_looks: tuple[int, int]) -> dict[str, int]:
        return first_round_needs(config, first_looks, n_windows, n_tokens_per_window, n_yardsticks, n_units)

    needs = needed(proposer.first_looks)
    if sum(needs.values()) <= config.max_tokens:
        return
    counted = ", ".join(f"{n:,} for {what}" for what, n in needs.items())
    where = "proposer" if search == "main" else f"controls.{search}"
    left_out = {option: sum(needed(looks).values()) for option, looks in proposer.looks_left_out.items()}
    remedies = [
        f", or give {' '.join(f'{where}.{part}' for part in option.split())}, with which it needs {n_tokens:,}"
        for option, n_tokens in left_out.items()
        if n_tokens <= config.max_tokens
    ]
    if not remedies and proposer.first_looks[0] and sum(needed((0, 0)).values()) <= config.max_tokens:
        remedies = [", or choose a proposer without gradients, such as evolutionary"]
    raise ConfigError(
        f"search.max_tokens={config.max_tokens} does not pay for the first round of the {search} search, which needs "
        f"{sum(needs.values()):,} tokens: {counted}; raise it, or lower search.n_per_round, the first of "
        f"search.ladder.n_windows or data.n_tokens_per_window{''.join(remedies[:1])}"
    )
