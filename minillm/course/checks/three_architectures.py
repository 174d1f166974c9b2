"""Checks for the exercises of lesson 08. Each names the mistake it recognises.

B batch, T target time, S source time, C channels, D head size. Sizes are all different, so that a
swapped axis cannot pass unnoticed.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)
from minillm.data.packing import IGNORE
from minillm.model.config import gpt2_config
from minillm.model.transformer import Transformer


def prefix_mask(student: Callable, *, prefix: tuple[int, ...] = (1, 4, 2)) -> None:
    """Masks of rows with prefixes of different lengths."""
    T, n = 5, torch.tensor(prefix)
    t, s = torch.arange(T)[:, None], torch.arange(T)[None]

    def masks(past: Tensor, given: Callable) -> Tensor:
        return torch.stack([past | given(int(length)) for length in n])[:, None]

    right = masks(s <= t, lambda length: s < length)
    mask = student(n, T)
    assert_shape(
        mask,
        (len(prefix), 1, T, T),
        "your mask",
        mistakes={
            "your mask lacks the axis of the heads: (B, 1, T, T)": (len(prefix), T, T),
            "your mask is the same for all rows; each has its own prefix": (T, T),
        },
    )
    assert_close(
        mask,
        right,
        name="your mask",
        mistakes={
            "your mask is upside down: True means 'may look'": ~right,
            "your prefix is one too long: positions 0 to prefix − 1 belong to it": (
                masks(s <= t, lambda length: s <= length)
            ),
            "a word does not see itself: s ≤ t, not s < t": masks(s < t, lambda length: s < length),
            "only the prefix may look at the prefix; what is written later must see it, too": (
                torch.stack([(s < length) & (t < length) for length in n])[:, None]
            ),
            "you let the rows of the prefix see the whole text, not its columns be seen": masks(
                s <= t, lambda length: (t < length).expand(T, T)
            ),
            "your mask is causal only: within the prefix all see all": masks(
                s <= t, lambda length: s < 0
            ),
        },
    )
    refuses(student, torch.tensor([1, T + 1]), T, words="prefix")
    refuses(student, torch.tensor([0, 2]), T, words="prefix")


def span_corrupt(
    student: Callable,
    *,
    tokens: Sequence[int] = (10, 11, 12, 13, 14, 15, 16, 17),
    spans: Sequence[tuple[int, int]] = ((1, 2), (5, 1)),
) -> None:
    """Source and target of T5's task, on ids."""
    tokens, spans, sentinels = list(tokens), list(spans), [90, 91, 92, 93]
    answer = student(list(tokens), list(spans), list(sentinels))
    assert_type(answer, tuple, "your result")
    assert_equal(len(answer), 2, name="the number of lists you return")
    inside = [i for first, n in spans for i in range(first, first + n)]
    number = {first: k for k, (first, _) in enumerate(spans)}
    source, target, masked, one = [], [], [], []
    for i, token in enumerate(tokens):
        if i in number:
            source.append(sentinels[number[i]])
            target.append(sentinels[number[i]])
        if i in inside:
            target.append(token)
            masked.append(sentinels[max(k for f, k in number.items() if f <= i)])
        else:
            source.append(token)
            masked.append(token)
        one.append(token)
    last, after = sentinels[len(spans)], len(tokens) - sum(spans[-1])
    assert_equal(
        list(answer[0]),
        source,
        name="your source",
        mistakes={
            "you leave one sentinel for each word; a span leaves one sentinel in all": masked,
            "your source still holds what was cut out": one,
            "the text after the last span is missing": source[: len(source) - after],
            "all your spans have the same sentinel; number them": [
                sentinels[0] if token in sentinels else token for token in source
            ],
        },
    )
    assert_equal(
        list(answer[1]),
        [*target, last],
        name="your target",
        mistakes={
            "your target lacks the closing sentinel, which says that nothing more follows": target,
            "your target holds the words without their sentinels": [
                token for token in target if token not in sentinels
            ],
            "your target closes with the last span's own sentinel; it takes the next one": [
                *target,
                sentinels[len(spans) - 1],
            ],
        },
    )
    refuses(student, tokens, [(0, 3), (2, 1)], sentinels, words="overlap")
    refuses(student, tokens, [(0, 1), (2, 1), (4, 1), (6, 1)], sentinels, words="sentinel")


def cross_attention(student: Callable, *, seed: int = 0) -> None:
    """Values and gradients of one head that looks at another text."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 8, generator=random)
    memory = torch.randn(3, 7, 8, generator=random)
    w_q, w_k, w_v = (torch.randn(8, 6, generator=random) / 2 for _ in range(3))
    real = torch.arange(7) < torch.tensor([[7], [3], [5]])

    def head(
        x, memory, w_q, w_k, w_v, *, seen=real, swap=False, own=False, values=None, divisor=6**0.5
    ):
        asks, offers = (memory, x) if swap else (x, x if own else memory)
        q, k, v = asks @ w_q, offers @ w_k, (offers if values is None else values) @ w_v
        scores = q @ k.mT / divisor
        if seen is not None and not swap and not own:
            scores = scores.masked_fill(~seen[:, None], -torch.inf)
        return scores.softmax(dim=-1) @ v

    inputs = (x, memory, w_q, w_k, w_v)
    yours = student(*inputs, real)
    assert_shape(
        yours,
        (3, 4, 6),
        "your output",
        mistakes={
            "queries come from x and keys from memory; you have them the other way round": (
                3,
                7,
                6,
            )
        },
    )
    corner = real[:, None] & torch.ones(4, 7).tril().bool()
    assert_close(
        yours,
        head(*inputs),
        name="your output",
        mistakes={
            "you attend within x: keys and values come from memory": head(*inputs, own=True),
            "you look at padding of the source: use real": head(*inputs, seen=None),
            "your mask is upside down: real is True where there is text": head(*inputs, seen=~real),
            "you mask the future; all of the source is in the past": _masked(head, inputs, corner),
            "your scores are not divided by √D": head(*inputs, divisor=1.0),
            "your scores are divided by D, not by √D": head(*inputs, divisor=6.0),
            "your √D is taken of the channels C: D is the last size of w_q": head(
                *inputs, divisor=8**0.5
            ),
        },
    )
    assert_same_gradients(
        lambda *i: student(*i, real), lambda *i: head(*i), inputs, name="cross_attention"
    )
    refuses(student, x, memory[:2], w_q, w_k, w_v, real, words="batch|memory")


def _masked(head: Callable, inputs: tuple, corner: Tensor) -> Tensor:
    x, memory, w_q, w_k, w_v = inputs
    scores = (x @ w_q) @ (memory @ w_k).mT / math.sqrt(w_q.shape[-1])
    return scores.masked_fill(~corner, -torch.inf).softmax(dim=-1) @ (memory @ w_v)


def sentence_vectors(student: Callable, *, seed: int = 0) -> None:
    """Mean and CLS pooling of ragged texts, each scaled to length 1."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 5, 4, generator=random) * 3 + 1
    real = torch.arange(5) < torch.tensor([[5], [2], [3]])
    weights = real[..., None].float()
    mean = (hidden * weights).sum(1) / weights.sum(1)
    unit = torch.nn.functional.normalize
    yours = student(hidden, real, "mean")
    assert_shape(yours, (3, 4), "your vectors")
    assert_close(
        yours,
        unit(mean),
        name="your mean vectors",
        mistakes={
            "you average the padding in: use real": unit(hidden.mean(1)),
            "your vectors do not have length 1": mean,
            "you scale by the largest number, not by the length": mean / mean.amax(1, keepdim=True),
            "you normalise every token before averaging; average first": unit(
                (unit(hidden, dim=-1) * weights).sum(1) / weights.sum(1)
            ),
            "you return the first token for 'mean'": unit(hidden[:, 0]),
            "you normalise over the batch; each vector alone (dim=-1)": unit(mean, dim=0),
        },
    )
    assert_close(
        student(hidden, real, "cls"),
        unit(hidden[:, 0]),
        name="your cls vectors",
        mistakes={
            "'cls' is the first token, you return the last": unit(hidden[:, -1]),
            "you ignore pooling: 'cls' gives the mean": unit(mean),
            "your vectors do not have length 1": hidden[:, 0],
        },
    )
    refuses(student, hidden, real, "max", words="max")


def fixed_masking(student: Callable, *, seed: int = 0) -> None:
    """Inputs and targets of masked language modelling."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 50, (3, 9), generator=random)
    real = torch.arange(9) < torch.tensor([[9], [4], [6]])
    hide = torch.rand(3, 9, generator=random) < 0.4
    hide[:, 0], hide[1, 7] = True, True  # something in each row, and something in the padding
    before = tokens.clone()
    answer = student(tokens, hide, real, 1)
    if not torch.equal(tokens, before):
        raise AssertionError("fixed_masking changes tokens in place; work on a copy")
    assert_type(answer, tuple, "your result")
    inputs, targets = answer
    both = hide & real
    assert_close(
        targets,
        torch.where(both, tokens, IGNORE),
        name="your targets",
        mistakes={
            "every word is still scored: the visible ones are answers the model can read": (
                torch.where(real, tokens, IGNORE)
            ),
            "you score padding: only hide and real": torch.where(hide, tokens, IGNORE),
            "you score the visible words instead of the hidden ones": torch.where(
                ~hide & real, tokens, IGNORE
            ),
            "your targets hold the mask; the model would learn to say [MASK]": torch.where(
                both, 1, IGNORE
            ),
        },
    )
    assert_close(
        inputs,
        torch.where(both, 1, tokens),
        name="your inputs",
        mistakes={
            "your inputs still show the hidden words": tokens,
            "you put [MASK] into the padding": torch.where(hide, 1, tokens),
        },
    )


def mystery_models(seed: int = 0) -> list[Callable[[Tensor], Tensor]]:
    """Three models as black boxes: int64 (1, 6) → logits (1, 6, V). One mask each."""
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed + 3)).tolist()
    return [_box(("bidirectional", "causal", "prefix")[i], seed) for i in order]


def _box(mask: str, seed: int) -> Callable[[Tensor], Tensor]:
    config = gpt2_config(20, d_model=16, n_layers=2, n_heads=2, max_length=6, mask=mask)
    model = Transformer(config, torch.Generator().manual_seed(seed))
    told = {"prefix": torch.tensor([3])} if mask == "prefix" else {}
    return lambda tokens: model(tokens, **told)


def reach(student: Callable, kinds: Sequence[str], fit: dict[str, str], *, seed: int = 0) -> None:
    """The measurement on known boxes, and the two judgements drawn from it."""
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9]])
    t, s = torch.arange(6)[:, None], torch.arange(6)[None]
    right = {
        "bidirectional": torch.ones(6, 6, dtype=torch.bool),
        "causal": s <= t,
        "prefix": (s <= t) | (s < 3),
    }
    for mask, known in right.items():
        yours = student(_box(mask, seed), tokens)
        assert_shape(yours, (6, 6), "your matrix")
        assert_close(
            yours,
            known,
            name=f"your matrix of a {mask} model",
            mistakes={
                "rows are outputs and columns inputs; yours is transposed": known.mT,
                "your matrix is upside down: True where the output moves": ~known,
                "you compare only the output at the replaced position": torch.eye(6).bool(),
            },
        )
    assert_unchanged(lambda tokens: student(_box("causal", seed), tokens), tokens, name="reach")
    order = torch.randperm(3, generator=torch.Generator().manual_seed(3)).tolist()
    names = ["encoder", "causal decoder", "prefix decoder"]
    assert_equal(list(kinds), [names[i] for i in order], name="kinds")
    best = {"search": "encoder", "chat": "causal decoder", "translation": "encoder-decoder"}
    why = {
        "search": "search compares texts that are read whole and never written",
        "chat": "a chat writes, and what was said before stays in the cache unchanged",
        "translation": "there is a source to be read whole, and a target to be written",
    }
    assert_type(fit, dict, "fit")
    for job, name in best.items():
        if fit.get(job) != name:
            raise AssertionError(f"fit[{job!r}] is {fit.get(job)!r}: {why[job]}")
