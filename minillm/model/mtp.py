"""Multi-token prediction: small modules that look one token further each (DeepSeek-V3, §2.2).

The model's output at position i predicts token i + 1. Module k (1, 2, …) takes the hidden state of
position i and the tokens up to i + k, and predicts token i + k + 1. In training this asks the
hidden states to prepare what comes later; in use, a module drafts a token that the model checks
together with the next one (speculative decoding). A plain forward pass leaves them out.

Shapes: B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minillm.data.packing import IGNORE
from minillm.model.blocks import make_block
from minillm.model.config import ModelConfig
from minillm.model.layers import make_norm
from minillm.model.masks import View

if TYPE_CHECKING:
    from minillm.model.transformer import Transformer


class MTPModule(nn.Module):
    """Module number ``index`` (from 0): one block of the model behind a projection.

    h′ᵢ = project [norm(hᵢ); norm(embedding of the next token)], then a block and a norm (eq. 21,
    22). Embedding and output matrix are those of the model.
    """

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        self.hidden_norm = make_norm(config)
        self.token_norm = make_norm(config)
        self.project = nn.Linear(2 * config.d_model, config.d_model, bias=False)
        self.block = make_block(config, config.n_layers + index)
        self.norm = make_norm(config)

    def forward(self, hidden: Tensor, embedded: Tensor, view: View) -> Tensor:
        """One token further.

        Args:
            hidden: (B, T, C), of the model or of the module before.
            embedded: (B, T, C), for each position the token that follows what ``hidden`` has read.

        Returns:
            (B, T, C), ready for the model's output matrix and for the next module.
        """
        both = torch.cat((self.hidden_norm(hidden), self.token_norm(embedded)), dim=-1)
        return self.norm(self.block(self.project(both), view))


def mtp_logits(
    model: Transformer, hidden: Tensor, tokens: Tensor, documents: Tensor | None = None
) -> list[Tensor]:
    """What each module predicts.

    Args:
        model: with ``config.n_future`` modules.
        hidden: (B, T, C), ``model.hidden(tokens)``.
        tokens: int64 (B, T).
        documents: int64 (B, T), as given to ``model.hidden``.

    Returns:
        Logits of module k = 1, 2, …, each (B, T − k, V): position i scores token i + k + 1.

    Raises:
        ValueError: the model has no modules, or the text is too short for them.
    """
    n_future, T = model.config.n_future, tokens.shape[1]
    if not 0 < n_future < T:
        raise ValueError(
            f"n_future={n_future} modules and {T} tokens: expected at least one module, and more "
            "tokens than modules; build the model with n_future, or give it a longer text"
        )
    logits = []
    for k, module in enumerate(model.mtp, start=1):
        embedded = model.embedding(tokens[:, k:])
        positions = torch.arange(T - k, device=tokens.device)
        inside = None if documents is None else documents[:, : T - k]
        view = model.view(embedded, positions, documents=inside)
        hidden = module(hidden[:, : T - k], embedded, view)
        logits.append(model.logits(hidden))
    return logits


def mtp_targets(targets: Tensor, k: int, documents: Tensor | None = None) -> Tensor:
    """What module k should predict, from what the model itself should.

    Args:
        targets: int64 (B, T); ``targets[:, i]`` is token i + 1, or IGNORE.
        k: number of the module, from 1.
        documents: int64 (B, T) document of each position; targets in another document than the
            position that predicts them become IGNORE.

    Returns:
        int64 (B, T − k): at position i token i + k + 1, or IGNORE.

    Raises:
        ValueError: k is not between 1 and T − 1.
    """
    T = targets.shape[1]
    if not 1 <= k < T:
        raise ValueError(f"k={k}: expected a module from 1 to {T - 1}, for {T} targets")
    shifted = targets[:, k:]
    if documents is None:
        return shifted
    same = documents[:, k:] == documents[:, : T - k]
    return shifted.where(same, IGNORE)
