"""The two published forms of a scaling law: what loss N parameters reach on D tokens.

N parameters, D tokens, C floating-point operations of training, about 6 N D. Losses are in nats
per token. Numbers or tensors go in, and the same comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Number = float | Tensor
FLOPS_PER_WEIGHT = 6  # and token: 2 forward, 4 backward (Kaplan et al. 2020, §2.1)


@dataclass(frozen=True)
class ChinchillaLaw:
    """L(N, D) = E + A / N^α + B / D^β (Hoffmann et al. 2022, equation 2).

    E is what no model can predict; the second term is the price of being small, the third of
    having read little.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, n: Number, d: Number) -> Number:
        return self.E + self.A / n**self.alpha + self.B / d**self.beta

    @property
    def exponents(self) -> tuple[float, float]:
        """(a, b) of the best N ∝ C^a and D ∝ C^b; they sum to 1."""
        total = self.alpha + self.beta
        return self.beta / total, self.alpha / total

    def optimum(self, flops: float) -> tuple[float, float]:
        """The N and D = C / 6N of least loss (Hoffmann et al. 2022, equation 4)."""
        a, b = self.exponents
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        product = flops / FLOPS_PER_WEIGHT
        return ratio * product**a, product**b / ratio


@dataclass(frozen=True)
class KaplanLaw:
    """L(N, D) = [(N_c / N)^(α_N / α_D) + D_c / D]^α_D (Kaplan et al. 2020, equation 1.5).

    With endless data this is (N_c / N)^α_N, with an endless model (D_c / D)^α_D. There is no floor.
    N counts no embeddings.
    """

    Nc: float
    alpha_n: float
    Dc: float
    alpha_d: float

    def loss(self, n: Number, d: Number) -> Number:
        return ((self.Nc / n) ** (self.alpha_n / self.alpha_d) + self.Dc / d) ** self.alpha_d

    @property
    def exponents(self) -> tuple[float, float]:
        """(a, b) of the best N ∝ C^a and D ∝ C^b; they sum to 1."""
        total = self.alpha_n + self.alpha_d
        return self.alpha_d / total, self.alpha_n / total

    def optimum(self, flops: float) -> tuple[float, float]:
        """The N and D = C / 6N of least loss by this formula."""
        r = self.alpha_n / self.alpha_d
        product = flops / FLOPS_PER_WEIGHT
        n = (r * self.Nc**r * product / self.Dc) ** (1 / (1 + r))
        return n, product / n
