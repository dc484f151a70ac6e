"""What the layers tell, drawn: the numbers of every block by their rank, and what goes together."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from scipy.stats import rankdata

from selfprune.reports.page.figures import MARGIN, Picture

MEANINGS = {
    "removed": "share of weights that went",
    "influence": "block influence (1 − cosine of hidden states in and out)",
    "alikeness": "alikeness (linear CKA of hidden states in and out)",
    "moved": "norm of what training changed of the weights, over their own",
    "cost": "rise of the score per weight that goes, by gradients",
    "sensitivity": "score of the unit pruned alone",
}
"""What a number of `layers` is; others are named after the closed form's own measure."""
MIN_RHO = 0.5
"""A correlation from here on, or below its negative, is told in words."""


def layers_picture(layers: Mapping[str, Any]) -> Picture | None:
    """A heat map of the ranks of all blocks by each number; the numbers themselves stand in the table.

    Args:
        layers: of `report.json`.

    Returns:
        None for a model of one block, whose ranks say nothing.
    """
    numbers = {name: of_blocks for name, of_blocks in layers["blocks"].items() if len(of_blocks) > 1}
    if not numbers:
        return None
    blocks = list(numbers["removed"])
    ranks = {name: _ranks(of_blocks) for name, of_blocks in numbers.items()}
    figure = go.Figure()
    figure.add_heatmap(
        x=[int(block) for block in blocks],
        y=[_name(name) for name in numbers],
        z=[[found.get(block) for block in blocks] for found in ranks.values()],
        text=[[f"block {block}: {found.get(block, float('nan')):.4g}" for block in blocks] for found in numbers.values()],
        hovertemplate="%{y}, %{text}<extra></extra>",
        colorscale="Viridis",
        colorbar={"title": {"text": "rank"}, "thickness": 12, "tickvals": [0, 1], "ticktext": ["lowest", "highest"]},
    )
    figure.update_layout(height=110 + 30 * len(numbers), margin=MARGIN | {"l": 110})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text="block", dtick=1 if len(blocks) <= 24 else None)
    rows = [[block, *(f"{found[block]:.4g}" if block in found else "" for found in numbers.values())] for block in blocks]
    told = "; ".join(f"{_name(name)}: {MEANINGS[name]}" for name in numbers if name in MEANINGS)
    text = " ".join([f"Every block by its rank. {told}.", *correlation_sentences(layers)])
    return Picture("layers", "What the layers tell", text, figure, ["block", *(_name(name) for name in numbers)], rows)


def correlation_sentences(layers: Mapping[str, Any]) -> list[str]:
    """What goes together, and how the proposers' steps agree with gradients, in sentences."""
    found = layers["correlations"]
    told = [
        f"{_name(pair['one'])} and {_name(pair['other'])} over {pair['of']} {pair['rho']:+.2f}"
        for pair in sorted(found, key=lambda pair: -abs(pair["rho"]))
        if abs(pair["rho"]) >= MIN_RHO
    ]
    sentences = [f"Rank correlations (Spearman): {', '.join(told)}." if told else "No two of these go together."]
    steps = [
        f"{each['proposer']} {each['n_foretold_to_fall']} of {each['n']}"
        + (f" (rank correlation of its changes with their worth {each['rho']:+.2f})" if "rho" in each else "")
        for each in layers["agreement"]
    ]
    if steps:
        sentences.append(f"Steps whose score gradients at the parent foretold to fall: {', '.join(steps)}.")
    return sentences


def _name(name: str) -> str:
    return name.replace("_", " ")


def _ranks(numbers: Mapping[str, float]) -> dict[str, float]:
    """From 0, the lowest, to 1; those that are alike share the mean of their ranks."""
    places = rankdata(list(numbers.values()))
    return {key: float((place - 1) / (len(numbers) - 1)) for key, place in zip(numbers, places, strict=True)}
