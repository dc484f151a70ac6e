"""What a run says of units, blocks and steps: what gradients said of them, and what goes together."""
