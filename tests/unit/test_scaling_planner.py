"""The planner and the published laws, against training runs whose figures are published."""

import pytest

from minillm.scaling.planner import (
    GPUS,
    ROOM,
    best_layout,
    budget,
    memory_per_gpu,
    plan,
    shape,
    training_hours,
)
from minillm.scaling.published import (
    CHINCHILLA,
    CHINCHILLA_MODEL,
    CHINCHILLA_REPLICATED,
    GOPHER,
    KAPLAN,
    KAPLAN_SIZE,
    kaplan_advice,
    twenty_tokens,
)
from minillm.train.layout import Layout


def test_published_losses_at_chinchilla_s_budget():
    """By hand: 280e9^0.34 = 7799, 300e9^0.28 = 1635; 70e9^0.34 = 4866, 1.4e12^0.28 = 2517."""
    gopher = 1.69 + 406.4 / 7799 + 410.7 / 1635
    smaller = 1.69 + 406.4 / 4866 + 410.7 / 2517
    assert CHINCHILLA.loss(*GOPHER) == pytest.approx(gopher, abs=1e-3)
    assert CHINCHILLA.loss(*CHINCHILLA_MODEL) == pytest.approx(smaller, abs=1e-3)
    for law in (CHINCHILLA, CHINCHILLA_REPLICATED):
        assert law.loss(*CHINCHILLA_MODEL) < law.loss(*GOPHER)
    # By hand: (6.4e13 / 280e9)^(76 / 103) = 55.0 and 1.8e13 / 300e9 = 60.
    assert KAPLAN.loss(*GOPHER) == pytest.approx(115**0.103, abs=1e-3)
    assert KAPLAN.loss(*CHINCHILLA_MODEL) > KAPLAN.loss(*GOPHER)  # why Gopher was built so large


def test_published_exponents():
    """Kaplan et al. 2020, abstract of the fits: ten times the model, 16% less loss."""
    assert KAPLAN_SIZE(8.8e13) == pytest.approx(1)
    assert CHINCHILLA.exponents == pytest.approx((0.45, 0.55), abs=0.01)
    # By the parametric fit of Hoffmann et al. 2022, table 2.
    assert CHINCHILLA.exponents == pytest.approx((0.46, 0.54), abs=0.015)
    assert CHINCHILLA_REPLICATED.exponents == pytest.approx((0.513, 0.487), abs=0.002)


def test_two_ways_to_advise_on_the_same_budget():
    n, d = kaplan_advice(5.76e23)
    assert n == pytest.approx(8.0e11, rel=0.02) and 6 * n * d == pytest.approx(5.76e23)
    n, d = twenty_tokens(5.76e23)
    assert d / n == pytest.approx(20) and 6 * n * d == pytest.approx(5.76e23)
    # Besiroglu et al. 2024: the law fitted again agrees with 20 tokens a parameter.
    n, d = CHINCHILLA_REPLICATED.optimum(5.76e23)
    assert 15 < d / n < 30


@pytest.mark.parametrize(
    ("n", "d", "gpu", "hours", "low", "high"),
    [
        (65.2e9, 1.4e12, "A100", 1_022_362, 0.4, 0.55),  # LLaMA (2023), table 15
        (37e9, 14.8e12, "H100", 2_664_000, 0.3, 0.4),  # DeepSeek-V3 (2024), table 1: H800
        (405e9, 15.6e12, "H100", 30_840_000, 0.3, 0.43),  # Llama 3.1's model card
    ],
)
def test_published_runs_reached_a_plausible_share_of_the_peak(n, d, gpu, hours, low, high):
    share = training_hours(n, d, gpu, 1.0) / hours
    assert low < share < high
    assert budget(gpu, hours, share) == pytest.approx(6 * n * d)


def test_a_shape_has_the_weights_it_was_asked_for():
    for n in (1e8, 1e9, 7e9, 7e10, 4e11):
        layers, width = shape(n)
        assert 12 * layers * width**2 == pytest.approx(n, rel=0.25)
        assert 0.5 < width / layers / 128 < 2 and width % 128 == 0
    assert shape(70e9)[0] == pytest.approx(80, abs=15)  # LLaMA-65B and Chinchilla have 80


def test_memory_by_hand():
    """12 · 10 · 1000² = 1.2e8 weights, a quarter of them on each, the optimiser a third of that."""
    memory = memory_per_gpu(10, 1000, Layout(data=3, tensor=2, pipeline=2), context=100)
    state = memory.state
    assert (state.weights, state.gradients, state.optimizer) == (6e7, 6e7, 12 * 3e7 / 3)
    assert memory.activations == 100 * 1000 / 2 * (2 * 10 + 34)
    assert memory.total == 4 * 3e7 + 12e7 + 2.7e6


def test_the_layout_uses_all_processors_and_fits_with_the_fewest_cuts():
    layers, width = shape(70e9)
    layout, memory = best_layout("H100", 2048, layers, width)
    assert layout.data * layout.tensor * layout.pipeline == 2048
    assert memory.total <= ROOM * GPUS["H100"].memory
    fewer = Layout(data=2 * layout.data, tensor=layout.tensor // 2, pipeline=layout.pipeline)
    assert memory_per_gpu(layers, width, fewer).total > ROOM * GPUS["H100"].memory
    assert best_layout("H100", 2048, *shape(1e9))[0] == Layout(data=2048)
    roomy, _ = best_layout("H200", 2048, layers, width)
    assert roomy.tensor * roomy.pipeline < layout.tensor * layout.pipeline


def test_a_plan_adds_up():
    ours = plan("A100", 2048, 21, utilization=0.47)  # LLaMA-65B: about 21 days (2023, §2.4)
    assert ours.flops == pytest.approx(6 * 65e9 * 1.4e12, rel=0.02)
    assert ours.gpu_hours == 2048 * 21 * 24 and ours.dollars == 2 * ours.gpu_hours
    assert 6 * ours.n_parameters * ours.n_tokens == pytest.approx(ours.flops)
    assert (ours.n_layers, ours.d_model) == shape(ours.n_parameters)
    assert "data     1,3" in str(ours) and "256 copies × 8 slices of each matrix × 1 stages" in str(
        ours
    )
    by_law = plan("A100", 2048, 21, utilization=0.47, optimum=CHINCHILLA.optimum)
    assert (by_law.n_parameters, by_law.n_tokens) == CHINCHILLA.optimum(by_law.flops)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plan("abacus", 8, 1), "gpu='abacus': expected one of V100"),
        (lambda: plan("H100", 0, 1), "n_gpus=0"),
        (lambda: plan("H100", 8, 1, utilization=1.5), "utilization=1.5"),
        (lambda: best_layout("A100", 8, 80, 8192), "need .* GB on each of 8 A100s.*72 GB"),
    ],
)
def test_impossible_plans_are_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
