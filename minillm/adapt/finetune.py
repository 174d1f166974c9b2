"""Fine-tune a chat model on conversations of your own, with adapters, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from minillm.adapt.lora import LoRA, add_lora
from minillm.adapt.sft import Example, Messages, encode_chat, padded_batches
from minillm.adapt.wrap import remove_adapters
from minillm.data.packing import Batch
from minillm.data.tokenizer import Tokenizer
from minillm.infer.chat import Template, find_template
from minillm.model.transformer import Transformer
from minillm.train.loop import History, chunked_token_loss, train

# Every matrix of a block: more places to learn at a rank that costs little (QLoRA, §4).
EVERYWHERE = LoRA(
    rank=8,
    alpha=16,
    targets=(
        *(f"attention.{part}" for part in ("q", "k", "v", "out")),
        *(f"mlp.{part}" for part in ("gate", "up", "down")),
    ),
)


def finetune(
    model: Transformer,
    tokenizer: Tokenizer,
    chats: Sequence[Messages],
    *,
    lora: LoRA = EVERYWHERE,
    steps: int = 60,
    batch_size: int = 4,
    lr: float = 1e-3,
    max_tokens: int = 512,
    template: Template | None = None,
    generator: torch.Generator | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    evaluate_every: int | None = None,
    progress: bool = True,
) -> History:
    """Give a model adapters and train them to answer as the conversations do.

    Args:
        model: plain, or with quantised layers (QLoRA); changed in place.
        chats: conversations as (role, content) pairs, such as `sft.read_chats` gives.
        lora: which matrices learn, and with what rank.
        steps: updates, each on ``batch_size`` conversations.
        max_tokens: a longer conversation is cut there.
        template: None looks at the tokenizer's special tokens.
        generator: shuffles the conversations and draws the adapters; None starts one at seed 0.
        evaluate, evaluate_every: as for `train`, to look on while it learns.

    Returns:
        The course of training; the adapters are in the model (`save_adapters`, `merge`).

    Raises:
        ValueError: no conversations, none in which something is left to learn, or impossible
            settings; the model then has no adapters.
    """
    for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")
    generator = generator or torch.Generator().manual_seed(0)
    template = template or find_template(tokenizer)
    max_tokens = min(max_tokens, model.config.max_length)
    examples = [cut(encode_chat(chat, template, tokenizer), max_tokens) for chat in chats]
    examples = [example for example in examples if any(t >= 0 for t in example.targets)]
    if not examples:
        raise ValueError(
            f"nothing to learn in {len(chats)} conversations of at most {max_tokens} tokens: is "
            "there an answer in them, and does it begin before that?"
        )
    add_lora(model, lora, generator)
    batches = endless(examples, min(batch_size, len(examples)), generator)
    try:
        return train(
            model, batches, steps=steps, lr=lr, weight_decay=0.0, loss_fn=chunked_token_loss,
            evaluate=evaluate, evaluate_every=evaluate_every, progress=progress,
        )  # fmt: skip
    except ValueError:
        remove_adapters(model)
        raise


def cut(example: Example, max_tokens: int) -> Example:
    return Example(example.tokens[:max_tokens], example.targets[:max_tokens])


def endless(
    examples: Sequence[Example], batch_size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Epoch after epoch, each in another order."""
    while True:
        yield from padded_batches(examples, batch_size, generator)
