"""Positions: what follows from their definitions, on numbers small enough to check by hand."""

import json
import math

import pytest
import torch

from minillm.model.config import ModelConfig, Rope, RopeScaling, llama_config
from minillm.model.positions import (
    alibi_bias,
    alibi_slopes,
    rope_angles,
    rope_frequencies,
    rotate,
    rotate_interleaved,
)

ROTATIONS = {"half": rotate, "interleaved": rotate_interleaved}


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: RopeScaling("cubic"), "kind='cubic': expected one of"),
        (lambda: RopeScaling("yarn", 4.0), "yarn scaling needs original_length"),
        (lambda: RopeScaling("linear", 0.5), "factor=0.5: expected at least 1"),
        (lambda: Rope(pairs="thirds"), "pairs='thirds'"),
        (lambda: Rope(base=0.0), "base=0.0"),
        (lambda: Rope(fraction=1.5), "fraction=1.5"),
        (lambda: llama_config(9, d_model=12, n_heads=4), "head_dim=3"),
    ],
)
def test_what_is_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_frequencies_by_hand():
    """D = 4 and base 100: 1 and 100^(-1/2). Linear divides both; NTK only the last."""
    expect = {
        None: [1, 0.1],
        RopeScaling("linear", 4.0): [0.25, 0.025],
        RopeScaling("ntk", 4.0): [1, 0.025],
        # 50 tokens are 8.0 turns of the first pair and 0.8 of the second.
        RopeScaling("llama3", 4.0, 50, slow_turns=1.0, fast_turns=2.0): [1, 0.025],
        RopeScaling("yarn", 4.0, 50, slow_turns=0.9, fast_turns=7.0): [1, 0.025],
    }
    for scaling, numbers in expect.items():
        rope = Rope(base=100.0, scaling=scaling)
        assert rope_frequencies(4, rope).tolist() == pytest.approx(numbers), scaling


def test_llama3_blends_between_its_ends():
    """1.5 turns stand half way between 1 and 2, so half of the slowing remains."""
    length = round(1000 * 1.5 * 2 * math.pi)
    scaling = RopeScaling("llama3", 4.0, length, slow_turns=1.0, fast_turns=2.0)
    _, slow = rope_frequencies(4, Rope(base=1e6, scaling=scaling)).tolist()
    assert slow == pytest.approx(1e-3 * (0.5 + 0.5 / 4), rel=1e-3)


@pytest.mark.parametrize("pairs", ROTATIONS)
def test_scores_know_only_the_distance_and_lengths_stay(pairs):
    turn, g = ROTATIONS[pairs], torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 2, 7, 10, generator=g)

    def turned(x, start):
        return turn(x, *rope_angles(torch.arange(start, start + 7), 10, Rope(base=50.0)))

    here, there = (turned(q, s) @ turned(k, s).mT for s in (0, 300))
    torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(here, turned(q, 1) @ turned(k, 0).mT, atol=0.1)
    torch.testing.assert_close(turned(q, 300).norm(dim=-1), q.norm(dim=-1))
    assert torch.equal(turned(q, 0)[:, :, 0], q[:, :, 0]), "position 0 does not turn"


@pytest.mark.parametrize("pairs", ROTATIONS)
def test_a_quarter_turn_shows_which_channels_are_pairs(pairs):
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0, 5.0]]]])  # the fifth channel is behind the rotation
    expected = {"half": [-3.0, -4.0, 1.0, 2.0, 5.0], "interleaved": [-2.0, 1.0, -4.0, 3.0, 5.0]}
    assert ROTATIONS[pairs](x, zero, one).flatten().tolist() == expected[pairs]


def test_the_two_pairings_differ_only_in_the_order_of_channels():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 8, generator=g)
    rotation = rope_angles(torch.arange(5), 8, Rope())
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    halves = rotate(x, *rotation)[..., order]
    torch.testing.assert_close(halves, rotate_interleaved(x[..., order], *rotation))


def test_slopes_of_the_paper():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    # 6 heads: the four of H = 4, then every other of H = 8.
    assert alibi_slopes(6).tolist() == [2.0**-i for i in (2, 4, 6, 8, 1, 3)]


def test_alibi_bias_is_minus_slope_times_distance():
    bias = alibi_bias(torch.tensor([[3]]), 5, 2)
    assert bias.shape == (1, 2, 1, 5)
    assert (bias[0, 0, 0] * 16).tolist() == [-3, -2, -1, 0, -1]
    assert (bias[0, 1, 0] * 256).tolist() == [-3, -2, -1, 0, -1]


def test_a_configuration_survives_json_with_all_its_parts():
    rope = Rope(5e5, 0.5, "interleaved", RopeScaling("longrope", factors=(1.0, 2.0)), (1, 3))
    config = ModelConfig(10, position="rope", rope=rope, window=7, global_layers=(2,))
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
