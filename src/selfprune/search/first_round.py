"""What a search needs before it can give anything: a budget that does not pay for it is refused before anything is spent."""

from selfprune.errors import ConfigError
from selfprune.evaluators.windows import batch_sizes
from selfprune.proposers.base import ProposerConfig
from selfprune.search.search_config import SearchConfig
from selfprune.search.swap_gradients import batches_from, n_look_tokens


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
        search: its name.
        config: what it may spend.
        proposer: who is asked.
        n_windows: search windows.
        n_tokens_per_window: tokens of every one.
        n_yardsticks: known allocations that race first.
        n_units: units that are pruned alone first, if any are.

    Raises:
        ConfigError: with what the first round needs, when it is more.
    """
    ladder = config.ladder
    sizes = batch_sizes(n_windows, ladder.batch_size(config.batch_size), [] if ladder.fresh else ladder.rungs)
    n_looks, n_valued = proposer.first_looks
    n_valued = sum(sizes[batch] for batch in batches_from(sizes, 0, n_valued))
    parts = {
        f"the sensitivities of {n_units:,} units": n_units * config.n_sensitivity_windows,
        f"{n_yardsticks} yardsticks": n_yardsticks * ladder.rungs[0],
        f"gradients at {n_looks} allocations": n_looks * n_look_tokens(n_valued, 1),
        f"the first rung of {config.n_per_round} candidates": config.n_per_round * ladder.rungs[0],
    }
    needs = {what: n * n_tokens_per_window for what, n in parts.items() if n}
    if sum(needs.values()) > config.max_tokens:
        counted = ", ".join(f"{n:,} for {what}" for what, n in needs.items())
        raise ConfigError(
            f"search.max_tokens={config.max_tokens} does not pay for the first round of the {search} search, which needs "
            f"{sum(needs.values()):,} tokens: {counted}; raise it, or lower search.n_per_round, the first of "
            "search.ladder.n_windows or data.n_tokens_per_window"
            + (", or choose a proposer without gradients, such as evolutionary" if n_looks else "")
        )
