"""One published model as data, and what follows from its configuration by counting.

Nothing about size is typed in: the parameters are those of the model that the configuration
builds, on the meta device, where tensors have shapes but no memory. ``published`` is what the
source prints, kept beside them to compare.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.overrides import TorchFunctionMode

from minillm.model.config import ModelConfig
from minillm.model.encoder_decoder import EncoderDecoder
from minillm.model.transformer import Transformer

UNITS = {"": 1, "M": 10**6, "B": 10**9}


@dataclass(frozen=True)
class Entry:
    """A published model.

    Args:
        name: as its authors write it.
        organisation: who trained it.
        date: year and month of the paper or the release, such as "2023-07".
        config: the decoder, or the only stack.
        published: total parameters as the source prints them: "6,738,415,616" or "175.0B".
        source: where that figure and the configuration stand.
        licence: what the weights may be used for; "closed" if they were never released.
        encoder: the other half of an encoder–decoder, which shares the embedding.
        published_active: parameters one token meets, as printed; None if the source prints none.
        skips_lookup: the printed active figure leaves out the input embedding, of which a token
            looks up one row.
        tokens: training tokens, where they are published.
        extra_parameters: weights that our configuration has no field for (or, negative, has too
            many of); ``note`` derives the number.
        layers_per_cache: so many neighbouring layers share their keys and values.
        note: what our space of ideas does not cover, and what the figure counts.
    """

    name: str
    organisation: str
    date: str
    config: ModelConfig
    published: str
    source: str
    licence: str
    encoder: ModelConfig | None = None
    published_active: str | None = None
    skips_lookup: bool = False
    tokens: float | None = None
    extra_parameters: int = 0
    layers_per_cache: int = 1
    note: str = ""

    def build(self) -> Transformer | EncoderDecoder:
        """The model on the meta device: all its shapes, none of its memory, in milliseconds."""
        with torch.device("meta"), _WithoutInitialValues():
            if self.encoder:
                return EncoderDecoder(self.encoder, self.config)
            return Transformer(self.config)

    @property
    def stacks(self) -> tuple[ModelConfig, ...]:
        """The configurations of the model: one, or encoder and decoder."""
        return (self.encoder, self.config) if self.encoder else (self.config,)

    @property
    def year(self) -> float:
        """The date as a number, for an axis of time: "2023-07" is 2023.5."""
        year, month = map(int, self.date.split("-"))
        return year + (month - 1) / 12

    @cached_property
    def _counts(self) -> tuple[int, int, int, int]:
        """Total and active weights, FLOPs of a first and of a second token.

        They are read off the model that ``build`` makes, once, and the model is let go.
        """
        model = self.build()
        stacks = (model.encoder, model.decoder) if self.encoder else (model,)
        total = model.n_parameters() + self.extra_parameters
        idle = sum(s.n_parameters() - s.n_parameters(active=True) for s in stacks)
        first, second = (sum(s.flops(1, context) for s in stacks) for context in (0, 1))
        # A tied embedding counts as an output, and an encoder has none.
        no_output = 2 * self.config.vocab_size * self.config.d_model if self.encoder else 0
        return total, total - idle, first - no_output, second - no_output

    @property
    def total_parameters(self) -> int:
        """All weights, tied ones counted once."""
        return self._counts[0]

    @property
    def active_parameters(self) -> int:
        """Weights that take part for one token: all but the experts that were not chosen."""
        return self._counts[1]

    def flops_per_token(self, context: int = 0) -> int:
        """Floating-point operations of one forward pass over one token, ``context`` tokens in.

        An encoder–decoder reads one token and writes one. ``extra_parameters`` are left out.
        """
        _, _, first, second = self._counts
        return first + (second - first) * context  # attention costs the same for every token

    def kv_bytes_per_token(self, bits: int = 16) -> int:
        """Bytes by which the cache grows with each token; 0 for an encoder, which keeps none."""
        if self.config.mask == "bidirectional":
            return 0
        n_heads, key_width, value_width = self.config.cache_shape
        n_layers = self.config.n_layers // self.layers_per_cache
        return n_layers * n_heads * (key_width + value_width) * bits // 8

    def memory(self, bits: float = 16, n_tokens: int = 0) -> float:
        """Bytes of the weights at ``bits`` each, with a 16-bit cache of ``n_tokens`` tokens."""
        return self.total_parameters * bits / 8 + self.kv_bytes_per_token() * n_tokens

    def total_error(self, rounding: bool = True) -> float:
        """How far the count is from the published total; see `error`."""
        return error(self.total_parameters, self.published, rounding)

    def active_error(self, rounding: bool = True) -> float:
        """How far the active count is from the published one; 0 if none is published."""
        if self.published_active is None:
            return 0.0
        lookup = self.config.vocab_size * self.config.d_model if self.skips_lookup else 0
        return error(self.active_parameters - lookup, self.published_active, rounding)


class _WithoutInitialValues(TorchFunctionMode):
    """Skips `torch.nn.init`: tensors without memory need no values, and building halves in time."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def printed(figure: str) -> tuple[float, float]:
    """A published figure as a number, and half a unit of its last digit.

    >>> printed("2.4B")
    (2400000000.0, 50000000.0)

    Raises:
        ValueError: it is not written as "6,738,415,616", "117M" or "2.4B".
    """
    match = re.fullmatch(r"(\d[\d,]*)(\.\d+)?([MB]?)", figure)
    if not match:
        raise ValueError(f"figure {figure!r}: expected digits, and perhaps M or B, as in '2.4B'")
    whole, fraction, unit = match.groups(default="")
    last_digit = UNITS[unit] * 10.0 ** -len(fraction[1:])
    value = float(whole.replace(",", "") + fraction) * UNITS[unit]
    return value, last_digit / 2 if unit else 0.0


def error(count: int, figure: str, rounding: bool = True) -> float:
    """Relative distance of a count from a published figure, without sign.

    "2.4B" may stand for anything from 2.35 to 2.45 billion: with ``rounding`` the distance is
    measured from that interval, without it from 2.4 billion.
    """
    value, half = printed(figure)
    return max(0.0, abs(count - value) - (half if rounding else 0.0)) / value
