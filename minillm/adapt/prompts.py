"""Learn what stands before the text, and leave the model alone: prompt and prefix tuning.

A prompt is seen by the tokens behind it only as keys and values, layer by layer. So both methods
use the door that the model already has for that, the cache: its first P entries are learned.

- Prefix tuning (Li and Liang 2021, §4) learns the keys and values themselves, in every layer.
- Prompt tuning (Lester et al. 2021, §2) learns P embeddings; the model makes keys and values of
  them, as it would of tokens.

The text then starts at position P. Both wrap the whole model: `tuned.base` is the model as it was.

Shapes: B batch, T time, P learned positions, C channels, L layers, K key/value heads, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from minillm.model.cache import KVCache
from minillm.model.config import ModelConfig
from minillm.model.transformer import Transformer

KeysValues = list[tuple[Tensor, Tensor]]


class PrefixedCache:
    """A cache that begins with given keys and values, and is empty or another cache behind them.

    To the model it is a `KVCache`. Gradients flow to the prefix, which a `KVCache` does not let
    through, as it copies.

    Args:
        prefix: for each layer, keys (1, K, P, D) and values (1, K, P, D).
        batch_size: B.
        behind: the cache of the text; None keeps nothing (training reads a text in one pass).
    """

    dropped = 0

    def __init__(self, prefix: KeysValues, batch_size: int, behind: KVCache | None = None):
        self.prefix, self.batch_size, self.behind = prefix, batch_size, behind
        self.length = prefix[0][0].shape[2] if prefix else 0

    @property
    def is_ragged(self) -> bool:
        return self.behind is not None and self.behind.is_ragged

    def reach(self, n_new: int) -> int:
        return self.length + (n_new if self.behind is None else self.behind.reach(n_new))

    def positions(self, n_new: int) -> Tensor:
        device = self.prefix[0][0].device
        steps = torch.arange(n_new, device=device)
        return self.length + (steps if self.behind is None else self.behind.positions(n_new))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.behind is not None:
            k, v = self.behind.append(layer, k, v)
        first_k, first_v = (part.expand(len(k), -1, -1, -1) for part in self.prefix[layer])
        return torch.cat((first_k, k), dim=2), torch.cat((first_v, v), dim=2)


class Recorder:
    """An empty cache that remembers what each layer appends to it, gradients included."""

    is_ragged, batch_size, dropped = False, 1, 0

    def __init__(self, device: torch.device):
        self.device = device
        self.keys_values: KeysValues = []

    def reach(self, n_new: int) -> int:
        return n_new

    def positions(self, n_new: int) -> Tensor:
        return torch.arange(n_new, device=self.device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.keys_values.append((k, v))
        return k, v


class Prompted(nn.Module, ABC):
    """A frozen model behind learned keys and values; subclasses say where these come from.

    Used like the model itself, for training and by `generate`: (B, T) tokens → (B, T, V) logits,
    for the text alone. Rows are single texts: ``documents`` needs a pass without a cache.

    Raises:
        ValueError: n below 1, or a model that cannot have a prefix (an encoder).
    """

    def __init__(self, base: Transformer, n: int):
        super().__init__()
        if n < 1:
            raise ValueError(f"n={n}: expected at least one learned position")
        if base.config.mask == "bidirectional":
            raise ValueError("an encoder has no cache to learn; put the prompt into a decoder")
        self.base = base.requires_grad_(False)
        self.n = n

    @property
    def config(self) -> ModelConfig:
        return self.base.config

    @property
    def device(self) -> torch.device:
        return self.base.device

    @abstractmethod
    def keys_values(self) -> KeysValues:
        """For each layer, keys and values (1, K, P, D)."""

    def forward(self, tokens: Tensor, cache: KVCache | None = None, **given) -> Tensor:
        return self.base.logits(self.hidden(tokens, cache, **given))

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, **given) -> Tensor:
        """As `Transformer.hidden`, with the learned positions in front.

        Raises:
            ValueError: the text and the learned positions do not fit into the model.
        """
        length = self.n + tokens.shape[-1]
        if self.config.position == "learned" and length > self.config.max_length:
            raise ValueError(
                f"{self.n} learned positions and {tokens.shape[-1]} tokens, but the model knows "
                f"{self.config.max_length} positions; shorten the text"
            )
        batch_size = len(tokens) if cache is None else cache.batch_size
        prefixed = PrefixedCache(self.keys_values(), batch_size, cache)
        return self.base.hidden(tokens, prefixed, **given)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.base.logits(hidden)


class PrefixTuned(Prompted):
    """Prefix tuning: 2·L·P·K·D parameters.

    They start as the keys and values of P tokens (random ones if none are given), which Li and
    Liang (§7.4) found far better than random numbers where data is scarce. Their MLP, through
    which the prefix is reparametrised while it trains, is left out.

    Args:
        base: is frozen.
        n: P.
        tokens: int64 (P,), to start from.
        generator: draws them otherwise; None starts one at seed 0.
    """

    def __init__(
        self,
        base: Transformer,
        n: int,
        tokens: Tensor | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__(base, n)
        recorder = Recorder(base.device)
        with torch.no_grad():
            base.hidden(_start(base, n, tokens, generator)[None], recorder)
        keys, values = zip(*recorder.keys_values, strict=True)
        self.keys = nn.ParameterList(nn.Parameter(k.clone()) for k in keys)
        self.values = nn.ParameterList(nn.Parameter(v.clone()) for v in values)

    def keys_values(self) -> KeysValues:
        return list(zip(self.keys, self.values, strict=True))


class PromptTuned(Prompted):
    """Prompt tuning: P·C parameters, which start as the embeddings of P tokens.

    Arguments as `PrefixTuned`.
    """

    def __init__(
        self,
        base: Transformer,
        n: int,
        tokens: Tensor | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__(base, n)
        tokens = _start(base, n, tokens, generator)
        self.prompt = nn.Parameter(base.embedding.weight[tokens].detach().clone())

    def keys_values(self) -> KeysValues:
        recorder = Recorder(self.device)
        positions = recorder.positions(self.n)
        x = self.base.place(self.prompt[None], positions)
        view = self.base.view(x, positions, recorder)
        for block in self.base.blocks:
            x = block(x, view, recorder)
        return recorder.keys_values


def _start(
    base: Transformer, n: int, tokens: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """The tokens that learning starts from: (P,)."""
    if tokens is None:
        generator = generator or torch.Generator().manual_seed(0)
        tokens = torch.randint(base.config.vocab_size, (n,), generator=generator)
    if tokens.shape != (n,):
        raise ValueError(f"tokens of shape {tuple(tokens.shape)}: expected ({n},), one a position")
    return tokens.to(base.device)
