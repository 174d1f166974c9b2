"""Coefficients that were published, with their sources. Losses of two papers do not compare.

Each law was fitted to its own text in its own tokens, so the same number of nats means different
things; which of two models a law prefers can be compared.
"""

from minillm.scaling.fit import PowerLaw
from minillm.scaling.laws import FLOPS_PER_WEIGHT, ChinchillaLaw, KaplanLaw

# Kaplan et al. 2020: the joint law, table 2; L(N) alone, equation 1.1.
KAPLAN = KaplanLaw(Nc=6.4e13, alpha_n=0.076, Dc=1.8e13, alpha_d=0.103)
KAPLAN_SIZE = PowerLaw(scale=8.8e13**0.076, exponent=-0.076, r2=float("nan"))

# Hoffmann et al. 2022, appendix D.3, and the same data fitted again by Besiroglu et al. 2024.
CHINCHILLA = ChinchillaLaw(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)
CHINCHILLA_REPLICATED = ChinchillaLaw(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)

# (parameters, tokens) of the two models whose contest decided between the laws.
GOPHER = (280e9, 300e9)  # Rae et al. 2021
CHINCHILLA_MODEL = (70e9, 1.4e12)  # Hoffmann et al. 2022, §4

PETAFLOP_DAY = 1e15 * 24 * 3600


def kaplan_advice(flops: float) -> tuple[float, float]:
    """What Kaplan et al. 2020 advised for a budget: N = 1.3e9 · (C / PF-day)^0.73, the rest data.

    Source: Kaplan et al. 2020, appendix A, table 6.
    """
    n = 1.3e9 * (flops / PETAFLOP_DAY) ** 0.73
    return n, flops / (FLOPS_PER_WEIGHT * n)


def twenty_tokens(flops: float) -> tuple[float, float]:
    """The rule of thumb after Chinchilla: 20 tokens a parameter.

    >>> n, d = twenty_tokens(5.88e23)
    >>> round(n / 1e9), round(d / 1e9)
    (70, 1400)
    """
    n = (flops / (FLOPS_PER_WEIGHT * 20)) ** 0.5
    return n, 20 * n
