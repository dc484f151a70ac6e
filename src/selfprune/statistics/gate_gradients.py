"""What a gate on each item would change of the loss, window by window.

Shape suffixes: O out, C items, W columns per item.
"""

from torch import Tensor

from selfprune.statistics.weight_gradients import WeightGradients


class GateGradients(WeightGradients):
    """Sums over calibration windows of the loss gradient by a gate on each item, to a power, in fp32.

    A gate g multiplies what an item puts out. At g = 1 its gradient is Σ W · ∂L/∂W over the columns that read the item, and just
    as much over the rows that write it.
    """

    def see(self, weight_OCW: Tensor, gradient_OI: Tensor) -> None:
        """Adds the gradient of one window by the reader's weights."""
        products_OCW = weight_OCW.float() * gradient_OI.float().reshape(weight_OCW.shape)
        self.update(products_OCW.sum(dim=(0, 2))[None])
