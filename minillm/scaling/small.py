"""The run that the grids of the course repeat: one small Transformer learns a world of facts.

N parameters, D tokens, C floating-point operations of training.
"""

import math
from collections.abc import Iterator, Sequence

import torch

from minillm.data.facts import World
from minillm.data.packing import Batch
from minillm.model.config import ModelConfig, llama_config
from minillm.model.transformer import Transformer
from minillm.train.loop import train

TOKENS_PER_FACT = 2  # that are read; the third is only predicted


def small_config(width: int, n_words: int) -> ModelConfig:
    """One layer of a given width, an even number, with two heads and LLaMA's parts.

    The embedding is tied: it multiplies at the output, so all but two rows of N take part in C.
    """
    return llama_config(
        n_words, d_model=width, n_layers=1, n_heads=2, d_ff=8 * width // 3 // 2 * 2,
        max_length=TOKENS_PER_FACT, position="learned", tie_embeddings=True,
    )  # fmt: skip


def n_parameters(width: int, n_words: int = 64) -> int:
    """N of `small_model`."""
    with torch.device("meta"):
        return Transformer(small_config(width, n_words)).n_parameters()


def iso_flop_settings(
    budgets: Sequence[float], widths: Sequence[int], **more: object
) -> list[dict[str, object]]:
    """Settings for `train_small` that spend each budget C = 6 N D on models of each width."""
    return [
        {"width": width, "n_tokens": round(budget / (6 * n_parameters(width))), **more}
        for budget in budgets
        for width in widths
    ]


def told_facts(
    world: World, n_tokens: int, generator: torch.Generator, batch_tokens: int | None = None
) -> Iterator[Batch]:
    """Batches with about n_tokens in all, always new ones: no epoch ends.

    A batch has √n_tokens tokens unless said otherwise: longer runs take more steps, and larger
    ones, as published runs do.
    """
    batch_tokens = batch_tokens or round(math.sqrt(n_tokens))
    n = max(2, batch_tokens // TOKENS_PER_FACT)
    for _ in range(max(1, round(n_tokens / (n * TOKENS_PER_FACT)))):
        yield world.sample(n, generator)


@torch.no_grad()
def loss_on_world(model: Transformer, world: World) -> float:
    """Nats per object, over everything that the world tells."""
    return world.expected_loss(model(world.questions.to(model.device))[:, -1])


def learn(
    world: World,
    width: int,
    n_tokens: int,
    seed: int = 0,
    *,
    reads: int = 1,
    batch_tokens: int | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Transformer, list[tuple[int, float]]]:
    """Train one model, with a cosine that ends when the tokens do.

    The learning rate falls with the width (as in Yang et al. 2021, "Tensor Programs V", for
    Adam and matrices); 0.32 was found on widths 8 to 48.

    Returns:
        The model, and (tokens read, loss) at each of `reads` evenly spaced places; the last is the
        end.
    """
    config = small_config(width, world.n_words)
    model = Transformer(config, torch.Generator().manual_seed(seed)).to(device)
    generator = torch.Generator().manual_seed(seed)
    batches = list(told_facts(world, n_tokens, generator, batch_tokens))
    per_step = batches[0].tokens.numel()
    history = train(
        model, batches, steps=len(batches), lr=0.32 / width, weight_decay=0.0, progress=False,
        evaluate=lambda m: loss_on_world(m, world), evaluate_every=math.ceil(len(batches) / reads),
    )  # fmt: skip
    return model, [(step * per_step, loss) for step, loss in history.evals]


def train_small(width: int, n_tokens: int, seed: int = 0, reads: int = 1) -> dict[str, object]:
    """One run of a grid: `learn` in the world of this seed, as numbers that a file can hold."""
    model, losses = learn(World(seed=seed), width, n_tokens, seed, reads=reads)
    n, d = model.n_parameters(), losses[-1][0]
    return {
        "width": width,
        "n_parameters": n,
        "n_tokens": d,
        "flops": 6 * n * d,
        "loss": losses[-1][1],
        "reads": losses,
    }
