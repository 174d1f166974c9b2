"""Gradient spikes: notice a step that would do damage, leave it out, and go back if it lasts.

Large runs meet steps whose gradient is suddenly many times longer than usual. Clipping shortens
it, but its direction is as bad as before. PaLM's authors went back to a checkpoint from before the
spike and left out the data that followed (Chowdhery et al. 2022, §5.1). Here single spikes are
left out at once, and only a row of them goes back.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SpikeGuard:
    """When a step is a spike, and when spikes are a trend.

    Attributes:
        factor: a gradient norm above this many times the usual one is a spike; so is NaN.
        window: the usual norm is the median of so many applied steps; before there are that many,
            only numbers that are not finite are spikes.
        patience: after so many spikes in a row, go back to the last checkpoint.
    """

    factor: float = 5.0
    window: int = 20
    patience: int = 3

    def __post_init__(self):
        if not self.factor > 1:
            raise ValueError(f"factor={self.factor}: expected above 1, or every step is a spike")
        if self.window < 1 or self.patience < 1:
            raise ValueError(
                f"window={self.window}, patience={self.patience}: expected at least 1 of each"
            )

    def is_spike(self, norms: Sequence[float], loss: float, norm: float) -> bool:
        """Whether a step stands out.

        Args:
            norms: gradient norms of the last `window` steps that were applied, or of fewer.
            loss, norm: of the step in question, before clipping.
        """
        if not math.isfinite(loss + norm):
            return True
        return len(norms) >= self.window and norm > self.factor * statistics.median(norms)
