"""Fits of scaling laws, against numpy, numerical minima, and laws whose coefficients are known."""

import math

import numpy as np
import pytest
import torch

from minillm.scaling.fit import (
    bootstrap,
    fit_chinchilla,
    fit_kaplan,
    fit_power,
    huber,
    interval,
    r_squared,
)
from minillm.scaling.isoflop import allocation, fit_valley
from minillm.scaling.laws import ChinchillaLaw, KaplanLaw
from minillm.scaling.published import CHINCHILLA, KAPLAN

LAWS = [ChinchillaLaw(0.7, 12.0, 0.45, 30.0, 0.31), CHINCHILLA, KAPLAN]


def runs(law, sizes=(2e3, 7e3, 3e4, 9e4), tokens=(1e4, 8e4, 3e5, 2e6)):
    n, d = torch.cartesian_prod(torch.tensor(sizes), torch.tensor(tokens)).double().unbind(1)
    return n, d, law.loss(n, d)


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).double()


def test_a_power_law_is_numpy_s_line_through_the_logarithms():
    x = torch.tensor([3.0, 10.0, 200.0, 1e5, 7e6])
    y = 5 * x**-0.3 * (0.1 * noise(5)).exp()
    law = fit_power(x, y)
    slope, intercept = np.polyfit(np.log(x.numpy()), np.log(y.numpy()), 1)
    assert law.exponent == pytest.approx(slope) and law.scale == pytest.approx(math.exp(intercept))
    correlation = np.corrcoef(np.log(x.numpy()), np.log(y.numpy()))[0, 1]
    assert law.r2 == pytest.approx(correlation**2)
    assert law(2.0) == pytest.approx(math.exp(intercept) * 2**slope)


def test_r_squared_by_hand():
    assert r_squared([1.0, 2.0, 3.0], [1.0, 2.0, 6.0]) == pytest.approx(1 - 9 / 14)
    assert r_squared([3.0, 3.0, 3.0], [1.0, 2.0, 6.0]) == 0
    assert r_squared([2.0, 2.0], [2.0, 2.0]) == 1


def test_huber_is_torch_s_with_its_gradient():
    r = torch.linspace(-3, 3, 25, requires_grad=True)
    other = r.detach().clone().requires_grad_()
    ours = huber(r, 0.7).sum()
    theirs = torch.nn.functional.huber_loss(other, torch.zeros(25), delta=0.7, reduction="sum")
    ours.backward()
    theirs.backward()
    assert torch.allclose(ours, theirs) and torch.allclose(r.grad, other.grad)


@pytest.mark.parametrize("law", LAWS[:2], ids=["small", "published"])
def test_chinchilla_s_five_coefficients_are_found_again(law):
    sizes, tokens = ((2e3, 7e3, 3e4, 9e4), (1e4, 8e4, 3e5, 2e6))
    if law is CHINCHILLA:
        sizes, tokens = (5e7, 4e8, 3e9, 1.6e10), (5e9, 3e10, 2e11, 1e12)
    found = fit_chinchilla(*runs(law, sizes, tokens))
    floor, terms = found.E, (found.A, found.B)
    assert floor == pytest.approx(law.E, rel=1e-3)
    assert (found.alpha, found.beta) == pytest.approx((law.alpha, law.beta), rel=1e-3)
    assert terms == pytest.approx((law.A, law.B), rel=0.02)


def test_kaplan_s_four_coefficients_are_found_again():
    law = KaplanLaw(Nc=3e5, alpha_n=0.21, Dc=9e5, alpha_d=0.33)
    found = fit_kaplan(*runs(law))
    assert (found.alpha_n, found.alpha_d) == pytest.approx((0.21, 0.33), rel=1e-3)
    assert (found.Nc, found.Dc) == pytest.approx((3e5, 9e5), rel=0.01)


def test_one_failed_run_does_not_bend_the_law_as_least_squares_would():
    n, d, losses = runs(LAWS[0])
    losses[5] *= 1.5
    robust = fit_chinchilla(n, d, losses)
    squares = fit_chinchilla(n, d, losses, delta=100.0)
    assert robust.loss(1e6, 1e7) == pytest.approx(LAWS[0].loss(1e6, 1e7), rel=3e-3)
    assert abs(squares.loss(1e6, 1e7) / LAWS[0].loss(1e6, 1e7) - 1) > 0.01


@pytest.mark.parametrize("law", LAWS, ids=["small", "chinchilla", "kaplan"])
def test_the_closed_optimum_is_the_least_loss_along_the_budget(law):
    for flops in (1e9, 1e17, 5.76e23):
        n, d = law.optimum(flops)
        assert 6 * n * d == pytest.approx(flops)
        along = torch.logspace(math.log10(n) - 1, math.log10(n) + 1, 2001).double()
        best = along[law.loss(along, flops / (6 * along)).argmin()]
        assert n == pytest.approx(float(best), rel=0.003)


@pytest.mark.parametrize("law", LAWS, ids=["small", "chinchilla", "kaplan"])
def test_the_exponents_say_how_the_optimum_grows(law):
    a, b = law.exponents
    (n1, d1), (n2, d2) = law.optimum(1e20), law.optimum(1e23)
    assert (n2 / n1, d2 / d1) == pytest.approx((1000**a, 1000**b)) and a + b == pytest.approx(1)


def test_kaplan_s_law_becomes_its_two_simple_laws():
    assert KAPLAN.loss(1e9, 1e30) == pytest.approx((KAPLAN.Nc / 1e9) ** KAPLAN.alpha_n, rel=1e-3)
    assert KAPLAN.loss(1e30, 1e9) == pytest.approx((KAPLAN.Dc / 1e9) ** KAPLAN.alpha_d, rel=1e-3)


def test_the_bootstrap_surrounds_the_truth_and_shrinks_with_the_noise():
    law, widths = LAWS[0], []
    n, d, losses = runs(law)
    for size in (0.02, 0.002):
        noisy = losses * (size * noise(len(n), 4)).exp()
        laws = bootstrap(
            n, d, noisy, rounds=40, generator=torch.Generator().manual_seed(0), delta=0.01
        )
        low, high = interval([law.exponents[0] for law in laws])
        assert low < law.exponents[0] < high
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]


def test_an_interval_holds_its_share():
    assert interval(torch.arange(101), 0.9) == pytest.approx((5, 95))
    with pytest.raises(ValueError, match="share=1"):
        interval([1.0, 2.0], 1)


def test_a_valley_is_numpy_s_parabola():
    n = torch.tensor([1e3, 3e3, 8e3, 3e4, 9e4])
    losses = 1.2 + 0.05 * (n.log() - math.log(9e3)) ** 2 + 0.01 * noise(5)
    valley = fit_valley(n, losses)
    c2, c1, c0 = np.polyfit(np.log(n.double().numpy()), losses.numpy(), 2)
    assert valley.n == pytest.approx(math.exp(-c1 / (2 * c2)), rel=1e-6)
    assert valley.loss == pytest.approx(
        c0 - c1**2 / (4 * c2)
    ) and valley.curvature == pytest.approx(c2)
    assert valley(5e4) == pytest.approx(np.polyval([c2, c1, c0], math.log(5e4)))


def test_the_valleys_of_a_law_lie_where_its_optimum_does():
    law, budgets, bottoms = LAWS[0], (1e9, 1e10, 1e11), []
    for budget in budgets:
        n = law.optimum(budget)[0] * torch.tensor([0.7, 0.85, 1.0, 1.2, 1.4]).double()
        bottoms.append(fit_valley(n, law.loss(n, budget / (6 * n))).n)
    sizes, tokens = allocation(budgets, bottoms)
    assert (sizes.exponent, tokens.exponent) == pytest.approx(law.exponents, abs=0.003)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fit_power([1, 1], [2, 3]), "2 different x"),
        (lambda: fit_power([1, 2], [2, 3, 4]), "expected as many"),
        (lambda: fit_power([0, 2], [2, 3]), "x holds 0.0"),
        (lambda: fit_chinchilla([1] * 4, [1] * 4, [1] * 4), "at least 5"),
        (lambda: fit_kaplan([1, 2], [1, 2], [1, 2]), "at least 4"),
        (lambda: fit_chinchilla([1] * 5, [1] * 5, [1, 1, -2, 1, 1]), "losses holds -2"),
        (lambda: fit_valley([1, 2], [1, 2]), "3 different sizes"),
        (lambda: fit_valley([1, 10, 100], [1, 2, 1]), "no valley"),
        (lambda: fit_valley([1, 10, 100], [9, 4, 1]), "outside of the sizes 1 to 100: add larger"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
