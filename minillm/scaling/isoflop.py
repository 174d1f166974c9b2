"""Many sizes for one budget: too small and too large both lose, and the best lies in a valley.

N parameters, D tokens, C floating-point operations of training, about 6 N D.
"""

import math
from dataclasses import dataclass

import torch

from minillm.scaling.fit import Numbers, PowerLaw, fit_power
from minillm.scaling.laws import FLOPS_PER_WEIGHT


@dataclass(frozen=True)
class Valley:
    """loss + curvature · (ln N − ln n)²: a parabola in ln N with its lowest point at n."""

    n: float
    loss: float
    curvature: float

    def __call__(self, n: float) -> float:
        return self.loss + self.curvature * (math.log(n) - math.log(self.n)) ** 2


def fit_valley(n: Numbers, losses: Numbers) -> Valley:
    """The parabola in ln N through runs of one budget, by least squares.

    Raises:
        ValueError: fewer than three sizes, or the runs show no valley: the parabola opens
            downwards, or its lowest point lies outside of the sizes.

    Source: Hoffmann et al. 2022, §3.2.
    """
    u = torch.as_tensor(n, dtype=torch.float64).log()
    y = torch.as_tensor(losses, dtype=torch.float64)
    if u.shape != y.shape or len(u.unique()) < 3:
        raise ValueError(f"{len(u)} sizes, {len(y)} losses: expected as many, 3 different sizes")
    centre = u.mean()
    columns = torch.stack([torch.ones_like(u), u - centre, (u - centre).square()], dim=1)
    c0, c1, c2 = torch.linalg.lstsq(columns, y[:, None]).solution[:, 0].tolist()
    if c2 <= 0:
        raise ValueError(f"curvature {c2:.3g}: no valley; add smaller and larger sizes")
    lowest = float(centre) - c1 / (2 * c2)
    if not u.min() <= lowest <= u.max():
        side = "smaller" if lowest < u.min() else "larger"
        raise ValueError(
            f"the lowest point, N = {math.exp(lowest):.3g}, lies outside of the sizes "
            f"{u.min().exp():.3g} to {u.max().exp():.3g}: add {side} ones"
        )
    return Valley(math.exp(lowest), c0 - c1**2 / (4 * c2), c2)


def allocation(budgets: Numbers, sizes: Numbers) -> tuple[PowerLaw, PowerLaw]:
    """How the best N, and D = C / 6N with it, grow with the budget C: two power laws.

    Args:
        budgets: C of each valley.
        sizes: the best N of each.
    """
    c = torch.as_tensor(budgets, dtype=torch.float64)
    n = torch.as_tensor(sizes, dtype=torch.float64)
    return fit_power(c, n), fit_power(c, c / (FLOPS_PER_WEIGHT * n))
