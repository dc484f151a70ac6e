"""How a pruned unit is repaired, in closed form; they do not know how it was pruned."""
