"""Numbers in few bits: a grid of levels, a scale for every group, and codes packed into bytes.

A weight matrix is cut into groups (the whole matrix, a row, or so many columns of a row). Each
group is stretched to fit a fixed set of levels, and each number is replaced by the code of the
nearest one:

    absmax   levels −(2ᵇ⁻¹ − 1) … 2ᵇ⁻¹ − 1, evenly spaced, times the group's scale
    affine   levels 0 … 2ᵇ − 1, evenly spaced, times the scale, plus the group's smallest value
    nf4      16 levels that a normal distribution fills equally often (Dettmers et al. 2023, §3)
    fp4      the 16 numbers with a sign, two bits of exponent and one of mantissa, scaled to ±1

Shapes: D rows (outputs of a layer), C columns (inputs), G groups in a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("absmax", "affine", "nf4", "fp4")
# Where Dettmers et al. put the outermost quantile: halfway between 1/32 and 1/30 from the end.
NF4_OFFSET = 1 - (1 / 32 + 1 / 30) / 2


@dataclass(frozen=True)
class Format:
    """How numbers are stored.

    ``group`` columns of a row share a scale; 0 is the whole row, None the whole matrix. With
    ``double``, the scales themselves are stored in 8 bits, 256 of them sharing one 32-bit scale
    and all of them their mean (Dettmers et al. 2023, §3).

    Raises:
        ValueError: an unknown kind, or bits that the kind cannot have.
    """

    kind: str = "absmax"
    bits: int = 8
    group: int | None = 0
    double: bool = False

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: expected one of {KINDS}")
        if not 2 <= self.bits <= 8 or (self.kind in ("nf4", "fp4") and self.bits != 4):
            raise ValueError(f"bits={self.bits}: expected 2 to 8, and 4 for nf4 and fp4")
        if self.group is not None and self.group < 0:
            raise ValueError(f"group={self.group}: expected a number of columns, 0 or None")

    def bits_per_weight(self, n_columns: int, n_rows: int = 1) -> float:
        """What one number takes, with its share of scales (and offsets, for affine)."""
        numbers = n_columns * n_rows if self.group is None else (self.group or n_columns)
        scale_bits = 8 + 32 / 256 if self.double else 32
        n_scales = 2 if self.kind == "affine" else 1
        return (4 if self.bits <= 4 else 8) + n_scales * scale_bits / numbers


@dataclass(frozen=True)
class Quantized:
    """A matrix in a format.

    Attributes:
        codes: uint8 (D, C), or (D, C / 2) where two codes of at most 4 bits share a byte.
        scales: float32 (D, G), or (1, 1) for one scale in all; rounded ones if ``double``.
        offsets: as scales; affine only.
        format: what the codes mean.
    """

    codes: Tensor
    scales: Tensor | RoundedScales
    offsets: Tensor | RoundedScales | None
    format: Format

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        parts = (self.codes, self.scales, self.offsets)
        return sum(part.nbytes for part in parts if part is not None)


@dataclass(frozen=True)
class RoundedScales:
    """Scales in 8 bits around their mean, 256 of them to one float32: double quantization."""

    rounded: Quantized
    mean: Tensor  # float32, one number
    shape: tuple[int, ...]

    @classmethod
    def of(cls, scales: Tensor) -> RoundedScales:
        mean = scales.mean()
        flat = (scales - mean).flatten()
        rows = F.pad(flat, (0, -len(flat) % 256)).view(-1, 256)
        return cls(quantize(rows, Format("absmax", 8, 256)), mean, tuple(scales.shape))

    @property
    def nbytes(self) -> int:
        return self.rounded.nbytes + self.mean.nbytes

    def values(self) -> Tensor:
        """float32, in the shape they had."""
        flat = dequantize(self.rounded).flatten() + self.mean
        return flat[: math.prod(self.shape)].view(self.shape)


def scale_values(scales: Tensor | RoundedScales) -> Tensor:
    return scales.values() if isinstance(scales, RoundedScales) else scales


def levels(format: Format) -> Tensor:
    """What each code stands for, before scaling: float32 (2ᵇ,), ascending except for fp4."""
    if format.kind == "nf4":
        return nf4_levels()
    if format.kind == "fp4":
        return fp4_levels()
    codes = torch.arange(2**format.bits, dtype=torch.float32)
    return codes if format.kind == "affine" else codes - 2 ** (format.bits - 1)


def nf4_levels() -> Tensor:
    """The 16 levels of NormalFloat4: quantiles of a normal distribution, scaled to −1 … 1.

    Eight steps from the offset quantile down to the middle give the positive side, seven the
    negative one; they share the zero.
    """
    positive = torch.special.ndtri(torch.linspace(NF4_OFFSET, 0.5, 9, dtype=torch.float64))[:-1]
    negative = -torch.special.ndtri(torch.linspace(NF4_OFFSET, 0.5, 8, dtype=torch.float64))[:-1]
    values = torch.cat((negative, torch.zeros(1, dtype=torch.float64), positive.flip(0)))
    return (values / values.abs().max()).float()


def fp4_levels() -> Tensor:
    """The 16 numbers of a 4-bit float (E2M1), scaled to −1 … 1; code 8 is −0."""
    positive = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]) / 6
    return torch.cat((positive, -positive))


def quantize(weight: Tensor, format: Format) -> Quantized:
    """Round a matrix to a format.

    Args:
        weight: float (D, C), finite.

    Raises:
        ValueError: not a matrix, not finite, or columns that the group does not divide.
    """
    if weight.dim() != 2 or not weight.isfinite().all():
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}: expected a matrix of finite numbers"
        )
    grouped = group_columns(weight.detach().float(), format)  # (D, G, n) or (1, 1, D·C)
    if format.kind == "affine":
        offsets = grouped.amin(-1)
        scales = (grouped.amax(-1) - offsets) / (2**format.bits - 1)
    else:
        offsets = None
        largest = 2 ** (format.bits - 1) - 1 if format.kind == "absmax" else 1
        scales = grouped.abs().amax(-1) / largest
    if format.double:
        scales = RoundedScales.of(scales)
        offsets = None if offsets is None else RoundedScales.of(offsets)
    # The codes are chosen for the scales that will be read, and a group of zeros has scale 0.
    read = scale_values(scales)[..., None]
    steps = grouped if offsets is None else grouped - scale_values(offsets)[..., None]
    codes = nearest_codes(steps / read.where(read != 0, 1.0), format).reshape(weight.shape)
    return Quantized(pack(codes) if format.bits <= 4 else codes, scales, offsets, format)


def dequantize(quantized: Quantized) -> Tensor:
    """The matrix that the codes stand for: float32 (D, C)."""
    values = code_levels(quantized.codes, quantized.format)
    grouped = group_columns(values, quantized.format)
    grouped.mul_(scale_values(quantized.scales).float()[..., None])
    if quantized.offsets is not None:
        grouped.add_(scale_values(quantized.offsets).float()[..., None])
    return values


def code_levels(codes: Tensor, format: Format) -> Tensor:
    """What the codes stand for, before scaling: float32 (D, C).

    A byte of two codes is looked up whole, in a table of all 256 pairs of levels; the pair travels
    as one number of 64 bits. Unpacking first takes ten times as long.
    """
    table = levels(format).to(codes.device)
    if format.bits <= 4:
        byte = torch.arange(256, device=codes.device)
        table = F.pad(table, (0, 16 - len(table)))
        table = torch.stack((table[byte & 15], table[byte >> 4]), dim=1).view(torch.int64)[:, 0]
    values = table.index_select(0, codes.flatten().int())
    return values.view(torch.float32).view(len(codes), -1)


def group_columns(weight: Tensor, format: Format) -> Tensor:
    """(D, C) → (D, G, columns of a group), or (1, 1, D · C) for one group in all; a view."""
    if format.group is None:
        return weight.reshape(1, 1, -1)
    n = format.group or weight.shape[1]
    if weight.shape[1] % n:
        raise ValueError(
            f"{weight.shape[1]} columns do not divide into groups of {n}; choose another group"
        )
    return weight.unflatten(1, (-1, n))


def nearest_codes(steps: Tensor, format: Format) -> Tensor:
    """The code of the nearest level: any shape → uint8."""
    if format.kind in ("absmax", "affine"):
        # Absmax leaves code 0 unused: its grid has as many steps below zero as above.
        zero, lowest = (2 ** (format.bits - 1), 1) if format.kind == "absmax" else (0, 0)
        return (steps.round() + zero).clamp(lowest, 2**format.bits - 1).to(torch.uint8)
    table, order = levels(format).to(steps.device).sort()
    borders = (table[1:] + table[:-1]) / 2
    return order[torch.bucketize(steps, borders)].to(torch.uint8)


def pack(codes: Tensor) -> Tensor:
    """Two codes of 4 bits in a byte, the even column in the low half: (D, C) → (D, C / 2).

    Raises:
        ValueError: an odd number of columns, or a code above 15.
    """
    if codes.shape[-1] % 2 or (codes.numel() and codes.max() > 15):
        raise ValueError(
            f"codes of shape {tuple(codes.shape)} up to {codes.max()}: expected an even number of "
            "columns and codes of 4 bits"
        )
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpack(packed: Tensor) -> Tensor:
    """Undo `pack`: (D, C / 2) → (D, C)."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
