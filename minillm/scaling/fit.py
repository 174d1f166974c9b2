"""Fitting scaling laws to measured losses, and how far the fit can be trusted.

R runs, P coefficients of a law. Everything is float64: a law is read far outside of its data.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from minillm.scaling.laws import ChinchillaLaw, KaplanLaw

Numbers = Sequence[float] | Tensor
Form = Callable[[Tensor, Tensor, Tensor], Tensor]  # (P,), ln N (R,), ln D (R,) -> ln L (R,)


@dataclass(frozen=True)
class PowerLaw:
    """y = scale · x^exponent, a straight line when both axes are logarithmic."""

    scale: float
    exponent: float
    r2: float  # of ln y

    def __call__(self, x: float) -> float:
        return self.scale * x**self.exponent


def fit_power(x: Numbers, y: Numbers) -> PowerLaw:
    """The straight line through (ln x, ln y) with the least squares.

    >>> line = fit_power([1, 10, 100], [3, 300, 30000])
    >>> round(line.scale, 6), round(line.exponent, 6), round(line.r2, 6)
    (3.0, 2.0, 1.0)

    Raises:
        ValueError: fewer than two different x, unequal lengths, or a number that is not positive.
    """
    u, v = _logs("x", x), _logs("y", y)
    if u.shape != v.shape or len(u.unique()) < 2:
        raise ValueError(f"x has {len(u)} numbers, y {len(v)}: expected as many, and 2 different x")
    slope = ((u - u.mean()) * (v - v.mean())).sum() / (u - u.mean()).square().sum()
    line = v.mean() + slope * (u - u.mean())
    scale = (v.mean() - slope * u.mean()).exp()
    return PowerLaw(float(scale), float(slope), r_squared(line, v))


def r_squared(predicted: Numbers, measured: Numbers) -> float:
    """The share of the variance of `measured` that the prediction explains: 1 is all of it."""
    predicted, measured = _double(predicted), _double(measured)
    missed = (measured - predicted).square().sum()
    spread = (measured - measured.mean()).square().sum()
    return float(1 - missed / spread) if spread else float(missed == 0)


def huber(residual: Tensor, delta: float) -> Tensor:
    """r² / 2 near zero and a straight line beyond ±delta, so that no single run rules the fit."""
    size = residual.abs()
    return torch.where(size <= delta, 0.5 * size.square(), delta * (size - 0.5 * delta))


def fit_chinchilla(
    n: Numbers,
    d: Numbers,
    losses: Numbers,
    *,
    delta: float = 1e-3,
    start: ChinchillaLaw | None = None,
) -> ChinchillaLaw:
    """The Chinchilla law that fits R runs: Huber loss of the error of ln L, by L-BFGS.

    Args:
        n, d, losses: parameters, tokens and nats per token of each run.
        delta: errors of ln L beyond this count less.
        start: where to begin the search; several places if None, and the best end wins.

    Raises:
        ValueError: fewer than 5 runs, unequal lengths, or a number that is not positive.

    Source: Hoffmann et al. 2022, §3.3 and appendix D.2.
    """
    u, v, y = _runs(n, d, losses, 5)
    centre_n, centre_d = float(u.mean()), float(v.mean())
    if start is None:
        starts = [
            _chinchilla_start(float(y.min().exp()), float(y.mean().exp()), *choice)
            for choice in product((0.2, 0.6), (0.2, 0.6), (0.3, 0.8))
        ]
    else:
        starts = [_chinchilla_numbers(start, centre_n, centre_d)]
    # Centred, a change of α turns the curve about the middle of the data: far quicker to minimise.
    best = _minimise(_log_chinchilla, starts, u - centre_n, v - centre_d, y, delta)
    e, a, alpha, b, beta = best.tolist()
    return ChinchillaLaw(
        math.exp(e), math.exp(a + alpha * centre_n), alpha, math.exp(b + beta * centre_d), beta
    )


def _log_chinchilla(p: Tensor, log_n: Tensor, log_d: Tensor) -> Tensor:
    e, a, alpha, b, beta = p
    terms = (e.expand_as(log_n), a - alpha * log_n, b - beta * log_d)
    return torch.stack(terms).logsumexp(0)


def _chinchilla_start(
    least: float, mean: float, alpha: float, beta: float, share: float
) -> list[float]:
    """A floor at a share of the least loss, and two equal terms for the rest of the mean."""
    rest = math.log((mean - share * least) / 2)
    return [math.log(share * least), rest, alpha, rest, beta]


def _chinchilla_numbers(law: ChinchillaLaw, centre_n: float, centre_d: float) -> list[float]:
    a, b = math.log(law.A) - law.alpha * centre_n, math.log(law.B) - law.beta * centre_d
    return [math.log(law.E), a, law.alpha, b, law.beta]


def fit_kaplan(n: Numbers, d: Numbers, losses: Numbers, *, delta: float = 1e-3) -> KaplanLaw:
    """The Kaplan law that fits R runs, by the same method; raises like `fit_chinchilla`.

    Source: Kaplan et al. 2020, equation 1.5 (their fit minimised another error).
    """
    u, v, y = _runs(n, d, losses, 4)
    centre_n, centre_d = float(u.mean()), float(v.mean())
    middle = float(y.mean())
    starts = [
        [math.log(a_n), math.log(a_d), middle / a_d - math.log(2), middle / a_d - math.log(2)]
        for a_n, a_d in product((0.1, 0.4), (0.1, 0.4))
    ]
    best = _minimise(_log_kaplan, starts, u - centre_n, v - centre_d, y, delta)
    alpha_n, alpha_d = best[:2].exp().tolist()
    log_nc = float(best[2]) * alpha_d / alpha_n + centre_n
    return KaplanLaw(math.exp(log_nc), alpha_n, math.exp(float(best[3]) + centre_d), alpha_d)


def _log_kaplan(p: Tensor, log_n: Tensor, log_d: Tensor) -> Tensor:
    alpha_n, alpha_d = p[0].exp(), p[1].exp()  # both stay positive
    return alpha_d * torch.logaddexp(p[2] - alpha_n / alpha_d * log_n, p[3] - log_d)


def bootstrap(
    n: Numbers,
    d: Numbers,
    losses: Numbers,
    *,
    rounds: int = 100,
    generator: torch.Generator | None = None,
    delta: float = 1e-3,
) -> list[ChinchillaLaw]:
    """The law fitted again to R runs drawn with replacement, `rounds` times.

    What differs between these laws is what the runs at hand do not decide.

    Source: Efron & Tibshirani 1993; for this law Besiroglu et al. 2024, "Chinchilla Scaling: A
        replication attempt", which finds the published intervals far too narrow.
    """
    n, d, losses = _double(n), _double(d), _double(losses)
    whole = fit_chinchilla(n, d, losses, delta=delta)
    draws = torch.randint(len(n), (rounds, len(n)), generator=generator)
    return [fit_chinchilla(n[i], d[i], losses[i], delta=delta, start=whole) for i in draws]


def interval(values: Numbers, share: float = 0.95) -> tuple[float, float]:
    """The range that holds the middle `share` of the values.

    Raises:
        ValueError: a share outside 0 … 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share}: expected between 0 and 1")
    outside = (1 - share) / 2
    low, high = _double(values).quantile(torch.tensor([outside, 1 - outside]).double()).tolist()
    return low, high


def _minimise(
    form: Form, starts: list[list[float]], log_n: Tensor, log_d: Tensor, log_l: Tensor, delta: float
) -> Tensor:
    """The best end of several descents: the coefficients (P,) of least summed Huber loss."""
    best, least = None, math.inf
    for start in starts:
        p = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [p], max_iter=300, tolerance_grad=1e-9, tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def objective(p: Tensor = p, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            # Divided by delta the numbers are near 1, where the tolerances make sense.
            loss = huber(form(p, log_n, log_d) - log_l, delta).sum() / delta
            loss.backward()
            return loss

        optimizer.step(objective)
        end = float(objective().detach())
        if end < least:
            best, least = p.detach().clone(), end
    if best is None:
        raise ValueError("no descent ended in numbers: look for a loss or size that is wrong")
    return best


def _runs(n: Numbers, d: Numbers, losses: Numbers, least: int) -> tuple[Tensor, Tensor, Tensor]:
    u, v, y = _logs("n", n), _logs("d", d), _logs("losses", losses)
    if not len(u) == len(v) == len(y) >= least:
        raise ValueError(
            f"{len(u)} sizes, {len(v)} token counts, {len(y)} losses: expected as many of each, "
            f"and at least {least}, one for each coefficient"
        )
    return u, v, y


def _logs(name: str, values: Numbers) -> Tensor:
    values = _double(values)
    if not (values > 0).all():
        raise ValueError(f"{name} holds {float(values.min())}: a logarithm needs numbers above 0")
    return values.log()


def _double(values: Numbers) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)
