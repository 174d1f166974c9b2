"""Rotations, slopes and buckets are the numbers `transformers` computes."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as rotate_neighbours
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_halves
from transformers.models.t5.modeling_t5 import T5Attention

from minillm.model.config import Rope, RopeScaling
from minillm.model.positions import (
    alibi_bias,
    alibi_slopes,
    relative_buckets,
    rope_angles,
    rope_frequencies,
    rotate,
    rotate_interleaved,
)

DIM, BASE = 24, 700.0
# Ours, and the fields of theirs. Trained lengths put pairs on both sides of each ramp.
SCALINGS = {
    "linear": (RopeScaling("linear", 3.0), {"factor": 3.0}),
    "yarn": (
        RopeScaling("yarn", 5.0, 2000, slow_turns=2.0, fast_turns=20.0, attention_factor=1.25),
        {
            "factor": 5.0, "original_max_position_embeddings": 2000, "beta_slow": 2.0,
            "beta_fast": 20.0, "attention_factor": 1.25,
        },
    ),
    "llama3": (
        RopeScaling("llama3", 8.0, 900, slow_turns=1.0, fast_turns=4.0),
        {
            "factor": 8.0, "original_max_position_embeddings": 900, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ),
    "longrope": (
        RopeScaling("longrope", factors=tuple(1 + i / 3 for i in range(DIM // 2))),
        {
            "short_factor": [1 + i / 3 for i in range(DIM // 2)], "attention_factor": 1.0,
            "long_factor": [9.0] * (DIM // 2), "factor": 1.0,
            "original_max_position_embeddings": 512,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaled_frequencies(kind):
    ours, fields = SCALINGS[kind]
    config = LlamaConfig(
        hidden_size=2 * DIM,
        num_attention_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": kind, "rope_theta": BASE, **fields},
    )
    expected, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, device="cpu", seq_len=100)
    rope = Rope(base=BASE, scaling=ours)
    torch.testing.assert_close(rope_frequencies(DIM, rope), expected)
    assert not torch.allclose(expected, rope_frequencies(DIM, Rope(base=BASE)))
    cos, sin = rope_angles(torch.tensor([0, 7]), DIM, rope)
    torch.testing.assert_close(cos[1], (7 * expected).cos() * attention_factor)
    torch.testing.assert_close(sin[1], (7 * expected).sin() * attention_factor)


def test_both_pairings():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 5, 11, DIM, generator=g)
    positions = torch.randint(500, (3, 11), generator=g)
    cos, sin = (y[:, None] for y in rope_angles(positions, DIM, Rope(base=BASE)))
    twice = [torch.cat((y, y), dim=-1)[:, 0] for y in (cos, sin)]
    for ours, theirs in zip((q, k), rotate_halves(q, k, *twice), strict=True):
        torch.testing.assert_close(rotate(ours, cos, sin), theirs)
    theirs = rotate_neighbours(q.transpose(1, 2), sin[:, 0], cos[:, 0]).transpose(1, 2)
    torch.testing.assert_close(rotate_interleaved(q, cos, sin), theirs)


@pytest.mark.parametrize("n_heads", [1, 3, 4, 6, 8, 12, 71])
def test_alibi(n_heads):
    """Theirs adds slope · key position; rows then differ by a number the softmax cancels."""
    n_keys = 9
    theirs = build_alibi_tensor(torch.ones(1, n_keys, dtype=torch.int64), n_heads, torch.float32)
    torch.testing.assert_close(alibi_slopes(n_heads), theirs[:, 0, 1])
    ours = alibi_bias(torch.tensor([[2, 8]]), n_keys, n_heads)  # (1, H, 2, S)
    shift = ours - theirs[None]  # theirs is (H, 1, S)
    for row, position in enumerate((2, 8)):
        seen = shift[0, :, row, : position + 1]
        torch.testing.assert_close(seen, seen[:, :1].expand_as(seen))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_buckets(bidirectional):
    positions = torch.tensor([[0, 1, 130, 299]])
    ahead = torch.arange(300) - positions[0, :, None]
    theirs = T5Attention._relative_position_bucket(
        ahead, bidirectional=bidirectional, num_buckets=32, max_distance=128
    )
    ours = relative_buckets(positions, 300, bidirectional)[0]
    assert torch.equal(ours, theirs)
    # An encoder has no use for "ahead by nothing", the first bucket of its second half.
    assert set(ours.flatten().tolist()) == set(range(32)) - ({16} if bidirectional else set())
