"""Numbers in few bits: what each format can say, and how training survives it.

A floating-point number is a sign, an exponent and a mantissa. Exponent bits buy range, mantissa
bits buy precision, and a format with sixteen bits must choose. This file writes the formats out
bit by bit, and holds the two tools of mixed precision: casting only the products (`in_precision`),
and lifting small gradients into the range of float16 (`LossScale`).
"""

import math
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format: 1 sign bit, then the exponent, then the mantissa.

    With `infinities` the largest exponent is kept for infinities and NaN, as in IEEE 754. Without,
    as in FP8 E4M3, it holds ordinary numbers, and only the pattern of all ones is NaN.

    Source: IEEE 754-2019, §3.4; Micikevicius et al. 2022, "FP8 Formats for Deep Learning", table 1.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    dtype: torch.dtype
    infinities: bool = True

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """The exponent field counts from minus this."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def smallest(self) -> float:
        """The smallest number above 0, a subnormal."""
        return 2.0 ** (1 - self.bias - self.mantissa_bits)

    @property
    def smallest_normal(self) -> float:
        """Below this the numbers have fewer and fewer digits."""
        return 2.0 ** (1 - self.bias)

    @property
    def largest(self) -> float:
        return self.decode(self._largest_pattern)

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next number."""
        return 2.0**-self.mantissa_bits

    @property
    def _largest_pattern(self) -> int:
        all_ones = 2 ** (self.bits - 1) - 1
        return all_ones - (2**self.mantissa_bits if self.infinities else 1)

    def fields(self, pattern: int) -> tuple[int, int, int]:
        """Sign, exponent and mantissa of a bit pattern, as the whole numbers they spell.

        Raises:
            ValueError: the pattern has more bits than the format.
        """
        if not 0 <= pattern < 2**self.bits:
            raise ValueError(f"pattern={pattern}: {self.name} has {self.bits} bits")
        sign, rest = divmod(pattern, 2 ** (self.bits - 1))
        return sign, *divmod(rest, 2**self.mantissa_bits)

    def decode(self, pattern: int) -> float:
        """The number that a bit pattern means.

        Raises:
            ValueError: the pattern has more bits than the format.
        """
        sign, exponent, mantissa = self.fields(pattern)
        if pattern % 2 ** (self.bits - 1) > self._largest_pattern:
            value = math.inf if self.infinities and mantissa == 0 else math.nan
        elif exponent == 0:  # subnormal: no leading 1, so that the numbers reach down to 0
            value = mantissa * self.smallest
        else:
            value = (1 + mantissa * self.epsilon) * 2.0 ** (exponent - self.bias)
        return -value if sign else value

    def encode(self, x: float) -> int:
        """The bit pattern of the nearest number; of two equally near, the one that ends in 0.

        What is too large becomes infinite, or `largest` where there are no infinities.
        """
        sign = 2 ** (self.bits - 1) if math.copysign(1, x) < 0 else 0
        if math.isnan(x):
            return 2 ** (self.bits - 1) - 1  # all ones: NaN in every format here
        too_large = sign + self._largest_pattern + (1 if self.infinities else 0)
        if math.isinf(x) or x == 0:
            return too_large if x else sign
        exponent = max(math.frexp(x)[1] - 1, 1 - self.bias)  # subnormals share the smallest one
        n = round(abs(x) / 2.0 ** (exponent - self.mantissa_bits))  # Python rounds halves to even
        # Neighbouring patterns are neighbouring numbers, across a change of exponent too.
        pattern = ((exponent + self.bias - 1) << self.mantissa_bits) + n
        return min(sign + pattern, too_large)


FP32 = FloatFormat("FP32", 8, 23, torch.float32)
FP16 = FloatFormat("FP16", 5, 10, torch.float16)
BF16 = FloatFormat("BF16", 8, 7, torch.bfloat16)
E4M3 = FloatFormat("FP8 E4M3", 4, 3, torch.float8_e4m3fn, infinities=False)
E5M2 = FloatFormat("FP8 E5M2", 5, 2, torch.float8_e5m2)
FORMATS = (FP32, FP16, BF16, E4M3, E5M2)

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def cpu_multiplies(kind: str) -> bool:
    """Whether this processor has instructions for such products (AMX, AVX-512, some of ARM's)."""
    name = f"_is_mkldnn_{kind}_supported"
    return hasattr(torch.ops.mkldnn, name) and getattr(torch.ops.mkldnn, name)()


def cpu_gains_by(kind: str) -> bool:
    """Whether such products take no longer here than float32's.

    With AVX-512 alone bfloat16's take about twice as long (PyTorch 2.13); AMX is made for them.
    """
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if kind == "bf16" and platform.machine().lower() in ("x86_64", "amd64"):
        return has_amx is not None and has_amx()
    return cpu_multiplies(kind)


IMITATED = {PRECISIONS[kind] for kind in ("fp16", "bf16") if not cpu_gains_by(kind)}
PRODUCTS = {
    F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, torch.bmm,
    torch.einsum, F.scaled_dot_product_attention, getattr(F, "grouped_mm", None),
}  # fmt: skip


@dataclass
class LossScale:
    """A factor on the loss that keeps float16 gradients away from zero, and finds its own size.

    The backward pass is linear, so every gradient is `scale` times too large and is divided before
    it is used. When one overflows, the step is skipped and the scale halved; after `interval` good
    steps it is doubled. So it stays just below what overflows.

    Source: Micikevicius et al. 2018, "Mixed Precision Training", §3.2; the rule and its numbers
        are those of `torch.amp.GradScaler`.
    """

    scale: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    good_steps: int = 0  # since the scale last changed

    @property
    def may_shrink(self) -> bool:
        """Whether a smaller scale may help; below this it is not the scale that overflows."""
        return self.scale > 2.0**-16

    def update(self, finite: bool) -> None:
        """Note whether the last step's gradients were all finite, and adapt the scale."""
        if not finite:
            self.scale *= self.backoff
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps == self.interval:
            self.scale *= self.growth
            self.good_steps = 0


def in_precision(loss_fn: Callable, precision: str) -> Callable:
    """`loss_fn(model, batch)` with its matrix products in another precision (PyTorch's autocast).

    Weights stay in float32, and so do losses, norms' statistics and softmax: only products are
    cast. Their gradients come back in float32. On a CPU that gains no time by this precision the
    products are `RoundedProducts`.

    Raises:
        ValueError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return loss_fn

    def cast_loss(model, batch):
        device = next(model.parameters()).device.type
        with torch.autocast(device, PRECISIONS[precision]), imitated_products():
            return loss_fn(model, batch)

    return cast_loss


def imitated_products() -> AbstractContextManager:
    """`RoundedProducts` if autocast is on for a CPU that gains nothing by it, else nothing."""
    imitated = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") in IMITATED
    return RoundedProducts() if imitated else nullcontext()


class RoundedProducts(TorchFunctionMode):
    """Inside `torch.autocast("cpu")`: its products, as float32 products of rounded numbers.

    Hardware with 16-bit products rounds what goes in, adds up in float32 and rounds the sum. Where
    it is missing, PyTorch imitates it number by number, about fifteen times slower than a float32
    product; AVX-512 has it, and takes about twice as long. Rounding around a float32 product gives
    the same numbers, but for the order of the sums.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in PRODUCTS or not torch.is_autocast_enabled("cpu"):
            return func(*args, **(kwargs or {}))
        dtype = torch.get_autocast_dtype("cpu")

        def rounded(x: Tensor) -> Tensor:  # autocast, too, leaves whole numbers and float64 alone
            is_cast = x.is_floating_point() and x.dtype != torch.float64
            return x.to(dtype).float() if is_cast else x

        args, kwargs = tree_map_only(Tensor, rounded, (args, kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            y = func(*args, **kwargs)
        return y.to(dtype) if y.dtype == torch.float32 else y
