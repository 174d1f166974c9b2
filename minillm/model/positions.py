"""How a model knows which token comes where: rotations, slopes and buckets.

Learned positions are just an embedding and live in the Transformer. Rotations are applied to
queries and keys; slopes (ALiBi) and buckets (T5) are added to the scores.

Shapes: T queries, S keys, H heads, D head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minillm.model.config import Rope, RopeScaling

RELATIVE_BUCKETS, RELATIVE_MAX_DISTANCE = 32, 128  # as in every published T5


def rope_frequencies(dim: int, rope: Rope) -> Tensor:
    """By how many radians each pair of channels turns from one position to the next.

    Pair i of ``dim`` channels turns by base^(−2i/dim) (Su et al. 2021, eq. 15), or slower if the
    rotation is scaled for texts longer than those the model was trained on.

    Returns:
        (dim/2,) float32, the fastest pair first.
    """
    base = rope.base
    if rope.scaling and rope.scaling.kind == "ntk":
        # The slowest pair becomes slower by the factor, the fastest stays as it is.
        base *= rope.scaling.factor ** (dim / (dim - 2))
    frequencies = base ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    return scaled_frequencies(frequencies, rope) if rope.scaling else frequencies


def scaled_frequencies(frequencies: Tensor, rope: Rope) -> Tensor:
    """Slow the pairs down as ``rope.scaling`` says; see `RopeScaling` for the sources."""
    scaling = rope.scaling
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "longrope":
        return frequencies / torch.tensor(scaling.factors)
    if scaling.kind in ("yarn", "llama3"):
        keep = kept_share(frequencies, rope.base, scaling)
        return keep * frequencies + (1 - keep) * frequencies / scaling.factor
    return frequencies


def kept_share(frequencies: Tensor, base: float, scaling: RopeScaling) -> Tensor:
    """1 for pairs that turn often within the trained length, 0 for slow ones, between: a ramp.

    A pair that never completes a turn in training has shown only part of its circle; beyond the
    trained length it would reach angles never seen, so it is slowed down. Fast pairs have seen
    all angles, and tell neighbours apart: they stay.
    """
    turns = scaling.original_length * frequencies / (2 * math.pi)
    if scaling.kind == "llama3":  # a ramp in the number of turns
        share = (turns - scaling.slow_turns) / (scaling.fast_turns - scaling.slow_turns)
        return share.clamp(0, 1)
    # YaRN: a ramp in the number of the pair, between the two whole pairs around it.
    dim = 2 * len(frequencies)

    def pair(n_turns: float) -> float:
        return (
            dim * math.log(scaling.original_length / (n_turns * 2 * math.pi)) / (2 * math.log(base))
        )

    first = max(math.floor(pair(scaling.fast_turns)), 0)
    last = min(math.ceil(pair(scaling.slow_turns)), dim - 1)
    ramp = (torch.arange(len(frequencies)) - first) / max(last - first, 0.001)
    return 1 - ramp.clamp(0, 1)


def rope_angles(positions: Tensor, dim: int, rope: Rope) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle by which each position turns each pair of channels.

    Args:
        positions: int64 of any shape (…).
        dim: how many channels of a head turn, even.

    Returns:
        cos, sin: float32, (…, dim/2).
    """
    angles = positions[..., None].float() * rope_frequencies(dim, rope).to(positions.device)
    cos, sin = angles.cos(), angles.sin()
    if rope.scaling and rope.scaling.attention_factor != 1:
        cos, sin = cos * rope.scaling.attention_factor, sin * rope.scaling.attention_factor
    return cos, sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel i with channel i + n/2 of the first n ("half-split", as in transformers).

    Args:
        x: (B, H, T, D) queries or keys.
        cos, sin: (T, n/2) or (B, 1, T, n/2); channels behind the first n stay as they are.
    """
    n = 2 * cos.shape[-1]
    if n < x.shape[-1]:
        return torch.cat((rotate(x[..., :n], cos, sin), x[..., n:]), dim=-1)
    return rotate_by_halves(x, *both_halves(cos.to(x.dtype), sin.to(x.dtype)))


def both_halves(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """What `rotate_by_halves` multiplies both halves of the channels with: two of (…, T, n)."""
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate_by_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` with the tables of `both_halves`, as wide as x."""
    partners = x.roll(x.shape[-1] // 2, dims=-1)  # (a, b) → (b, a)
    return torch.addcmul(x * cos, partners, sin)  # (a cos − b sin, b cos + a sin)


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel 2i together with channel 2i + 1, as in the RoPE paper; arguments as `rotate`.

    The same rotation as `rotate` after a reordering of the channels, so the scores of a model can
    agree only if weights and rotation use the same pairing. Neighbours lie in memory as the two
    parts of a complex number do, and multiplying by cos + i sin turns it.
    """
    n = 2 * cos.shape[-1]
    if n < x.shape[-1]:
        return torch.cat((rotate_interleaved(x[..., :n], cos, sin), x[..., n:]), dim=-1)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # no complex numbers of two bytes
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)).contiguous())  # a + bi
    turned = pairs * torch.complex(cos.float(), sin.float())
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def alibi_slopes(n_heads: int) -> Tensor:
    """How much a score falls with every token of distance, for each head (Press et al. 2022, §3).

    A geometric series 2^(−8/H), 2^(−16/H), …, 2^−8 when H is a power of two; otherwise the
    series of the power of two below, filled up with every other slope of the one above.

    Returns:
        (H,) float32.
    """

    def series(n: int) -> list[float]:
        return [2 ** (-8 * (i + 1) / n) for i in range(n)]

    below = 2 ** int(math.log2(n_heads))
    return torch.tensor(series(below) + series(2 * below)[0::2][: n_heads - below])


def alibi_bias(positions: Tensor, n_keys: int, n_heads: int) -> Tensor:
    """What ALiBi adds to the scores: minus slope times distance.

    Args:
        positions: int64 (1 or B, T), positions of the queries.

    Returns:
        (1 or B, H, T, S) float32.
    """
    distance = positions[:, None, :, None] - torch.arange(n_keys, device=positions.device)
    return -alibi_slopes(n_heads).to(positions.device)[:, None, None] * distance.abs()


def relative_buckets(positions: Tensor, n_keys: int, bidirectional: bool) -> Tensor:
    """T5's buckets of distances: one each for the near ones, wider and wider further out.

    (Raffel et al. 2020, §2.1.) An encoder uses half of the buckets for keys behind the query and
    half for those ahead; a decoder has no keys ahead.

    Args:
        positions: int64 (1 or B, T), positions of the queries.

    Returns:
        int64 (1 or B, T, S), 0 … 31.
    """
    ahead = torch.arange(n_keys, device=positions.device) - positions[..., None]
    n_buckets, offset = RELATIVE_BUCKETS, 0
    if bidirectional:
        n_buckets //= 2
        offset = (ahead > 0) * n_buckets
        distance = ahead.abs()
    else:
        distance = (-ahead).clamp(min=0)
    n_exact = n_buckets // 2
    # Beyond the exact half, equal ratios of distance share a bucket.
    ratio = torch.log(distance.clamp(min=1) / n_exact) / math.log(RELATIVE_MAX_DISTANCE / n_exact)
    far = (n_exact + (ratio * (n_buckets - n_exact)).long()).clamp(max=n_buckets - 1)
    return offset + torch.where(distance < n_exact, distance, far)
