"""Checks for the exercises of lesson 05. Each names the mistake it recognises.

B batch, T time, V vocabulary.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.course.checks.common import assert_close, assert_equal, assert_type, refuses
from minillm.data.packing import IGNORE


def schedule(student: Callable, *, warmup: int = 4, stable: int = 5, decay: int = 6) -> None:
    """Warm-up, stable, decay: compares every step, and the steps after the end."""
    n_steps = warmup + stable + decay
    settings = {
        "peak": 0.02,
        "warmup_steps": warmup,
        "stable_steps": stable,
        "decay_steps": decay,
        "floor": 0.25,
    }

    def reference(step, shift=1, fall_shift=1, floor=0.25, clamp=True):
        if step < warmup:
            return 0.02 * (step + shift) / warmup
        k = step - warmup - stable + fall_shift
        k = min(max(k, 0), decay) if clamp else max(k, 0)
        return 0.02 * (1 - (1 - floor) * k / decay)

    def rates(of):
        return [float(of(step)) for step in range(n_steps + 3)]

    first = student(0, **settings)
    assert_type(first, float, "the rate at step 0")
    assert_close(
        rates(lambda step: student(step, **settings)),
        rates(reference),
        name="the list of rates",
        rtol=1e-6,
        atol=1e-9,
        mistakes={
            "your warm-up starts at 0, so the first step trains nothing: step 0 is peak / "
            "warmup_steps": rates(lambda s: reference(s, shift=0)),
            "your decay starts one step late: its first step is already below the peak": rates(
                lambda s: reference(s, fall_shift=0)
            ),
            "your rate falls to 0, not to floor * peak": rates(lambda s: reference(s, floor=0.0)),
            "your rate goes on falling after the last step: it stays at floor * peak": rates(
                lambda s: reference(s, clamp=False)
            ),
        },
    )
    refuses(student, -1, words="step", **settings)


def adamw_step(student: Callable, *, seed: int = 0) -> None:
    """Five steps against torch.optim.AdamW, with a large eps and a large decay."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(3, 2, generator=generator)
    gradients = torch.randn(5, 3, 2, generator=generator)
    gradients[:, 0] *= 100  # AdamW should not mind the scale of a gradient
    settings = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.5}

    def run(step_fn):
        parameter, m, v = start.clone(), torch.zeros(3, 2), torch.zeros(3, 2)
        for step, gradient in enumerate(gradients, start=1):
            given = [x.clone() for x in (parameter, gradient, m, v)]
            result = step_fn(*given, step, **settings)
            assert_type(result, tuple, "the result of adamw_step")
            assert_equal(len(result), 3, name="the number of tensors returned")
            for x, kept in zip(given, (parameter, gradient, m, v), strict=True):
                if not torch.equal(x, kept):
                    raise AssertionError(
                        "adamw_step changes one of its arguments in place; return new tensors"
                    )
            parameter, m, v = result
        return parameter

    weight = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([weight], **settings)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    assert_close(
        run(student),
        weight.detach(),
        name="your parameter after five steps",
        mistakes={
            "you do not correct the bias of m and v: divide by 1 - beta ** step": lambda: run(
                _wrong_adamw(correct=False)
            ),
            "you add the decay to the gradient (that is Adam with L2): AdamW shrinks the "
            "parameter directly, by lr * weight_decay": lambda: run(_wrong_adamw(l2=True)),
            "your decay is not multiplied by lr": lambda: run(_wrong_adamw(decay_by_lr=False)),
            "you forgot the weight decay": lambda: run(_wrong_adamw(decay=False)),
            "your eps is inside the square root: it is added to sqrt(v)": lambda: run(
                _wrong_adamw(eps_inside=True)
            ),
        },
    )
    refuses(student, start, gradients[0], start * 0, start * 0, 0, words="step", **settings)


def _wrong_adamw(correct=True, l2=False, decay_by_lr=True, decay=True, eps_inside=False):
    """AdamW with one well-known mistake; with none it is right."""

    def step_fn(p, g, m, v, step, *, lr, betas, eps, weight_decay):
        if l2:
            g = g + weight_decay * p
        elif decay:
            p = p * (1 - (lr if decay_by_lr else 1) * weight_decay)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        c1, c2 = (1 - betas[0] ** step, 1 - betas[1] ** step) if correct else (1, 1)
        root = (v / c2 + eps).sqrt() if eps_inside else (v / c2).sqrt() + eps
        return p - lr * (m / c1) / root, m, v

    return step_fn


class _Bigram(nn.Module):
    """Logits of the next token from the current one: a language model of one matrix."""

    def __init__(self, vocab_size: int, generator: torch.Generator):
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocab_size, vocab_size, generator=generator))

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        return self.table[tokens]


def accumulate(student: Callable, *, seed: int = 0) -> None:
    """Micro-batches with 7, 2 and 0 targets against one backward pass over all of them."""
    generator = torch.Generator().manual_seed(seed)
    model = _Bigram(5, generator)
    tokens = torch.randint(5, (4, 4), generator=generator)
    targets = torch.randint(5, (4, 4), generator=generator)
    targets[1, 3:] = IGNORE
    targets[2, 2:] = IGNORE
    targets[3] = IGNORE
    parts = [(tokens[i:j], targets[i:j]) for i, j in ((0, 2), (2, 3), (3, 4))]

    def sums(part):
        logits = model(part[0]).flatten(0, 1)
        return F.cross_entropy(logits, part[1].flatten(), reduction="sum")

    def gradient(loss):
        return torch.autograd.grad(loss, model.table, retain_graph=True)[0]

    counts = [int((part[1] != IGNORE).sum()) for part in parts]
    total = sum(sums(part) for part in parts)
    means = [sums(part) / max(n, 1) for part, n in zip(parts, counts, strict=True)]
    right = total / sum(counts)
    expected = gradient(right)

    stale = torch.ones_like(model.table)
    model.table.grad = stale.clone()  # what the last step left behind
    loss = student(model, parts)
    assert_type(loss, float, "the returned loss")
    yours = model.table.grad
    assert_type(yours, Tensor, "model.table.grad after your function")
    if yours.isnan().any() or math.isnan(loss):
        raise AssertionError(
            "a micro-batch without targets made your result NaN: its mean is 0 / 0; "
            "add up sums and divide once"
        )
    wrong = {
        "you average the means of the micro-batches: a target in a small micro-batch then weighs "
        "more than one in a large one": gradient(sum(means) / len(parts)),
        "you average the means of the micro-batches that have targets: a target in a small one "
        "still weighs more": gradient(sum(means) / 2),
        "you divide by all positions: targets of -100 do not count": expected
        * (sum(counts) / targets.numel()),
        "you never divide: the gradient is that of the sum, not of the mean": gradient(total),
        "you add the means without dividing": gradient(sum(means)),
    }
    wrong |= {
        "the gradient of the previous step is still in .grad: clear it first": [
            g + stale * f for g in (expected,) for f in (1, 1 / sum(counts))
        ]
    }
    for message, candidates in wrong.items():
        for candidate in candidates if isinstance(candidates, list) else [candidates]:
            if torch.allclose(yours, candidate, rtol=1e-4, atol=1e-6):
                raise AssertionError(message)
    assert_close(yours, expected, name="the gradient")
    assert_close(loss, right.item(), name="the returned loss")
    refuses(student, model, [], words="micro")


class _DropoutModel(nn.Module):
    """A bigram with heavy dropout that notes in which mode it was called."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(9, 9, generator=generator))
        self.dropout = nn.Dropout(0.5)
        self.modes: list[bool] = []
        self.graphs: list[bool] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.modes.append(self.training)
        self.graphs.append(torch.is_grad_enabled())
        return self.dropout(self.table[tokens])


def continue_greedily(student: Callable, *, seed: int = 0) -> None:
    """Greedy text is the same in both modes, and the model is left as it was found."""
    model = _DropoutModel(seed)
    expected = [3]
    for _ in range(6):
        expected.append(int(model.table[expected[-1]].argmax()))
    for was_training in (True, False):
        model.train(was_training)
        model.modes.clear()
        tokens = student(model, [3], 6)
        if True in model.modes:
            raise AssertionError(
                "the model samples in training mode: dropout is on, so the same prompt gives "
                "another text each time. Call model.eval() first"
            )
        assert_equal(tokens, expected, name="the text")
        if True in model.graphs:
            raise AssertionError(
                "you build a graph for gradients nobody will use: sample under torch.no_grad()"
            )
        if model.training != was_training:
            raise AssertionError(
                f"you leave the model with training={model.training}, but it was "
                f"{was_training}: put back the mode you found, or the run goes on without dropout"
            )
    refuses(student, model, [], 3, words="prompt")


CAUSES = ("healthy", "diverged", "overfitting", "rate too low")


def curves(seed: int = 0) -> dict[str, tuple[list[float], list[float]]]:
    """Four runs as (training loss, validation loss) at 200 evaluations, one per cause.

    Drawn from formulas, with the noise of real runs; which letter is which depends on the seed.
    """
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(200) / 200
    falling = 2.0 + 3.0 / (1 + 30 * t)
    blow_up = falling + 4.0 * torch.sigmoid(60 * (t - 0.4))
    shapes = {
        "healthy": (falling, falling + 0.4),
        "diverged": (blow_up, blow_up + 0.05),
        "overfitting": (falling - 0.9 * t, falling + 0.05 + 1.5 * (t - 0.4).clamp(min=0)),
        "rate too low": (5.0 - 2.0 * t, 5.02 - 2.0 * t),
    }
    order = torch.randperm(4, generator=generator).tolist()
    runs = {}
    for letter, index in zip("ABCD", order, strict=True):
        train, valid = (
            curve + 0.1 * torch.randn(200, generator=generator) for curve in shapes[CAUSES[index]]
        )
        runs[letter] = (train.tolist(), valid.tolist())
    return runs


def _cause_of(seed: int) -> dict[str, str]:
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed)).tolist()
    return {letter: CAUSES[index] for letter, index in zip("ABCD", order, strict=True)}


def diagnose(student: Callable, *, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Every planted cause must be found, also when a run stopped being a number."""
    hints = {
        "overfitting": "compare the end of the validation loss with its own smallest value, "
        "after smoothing",
        "rate too low": "measure how much the training loss still falls over the last quarter",
        "diverged": "compare the end of the training loss with where it was earlier: it rose",
        "healthy": "a steady gap between training and validation is normal, and single values are "
        "noisy: average several before you compare",
    }
    for seed in seeds:
        causes = _cause_of(seed)
        for letter, (train, valid) in curves(seed).items():
            answer = student(train, valid)
            assert_type(answer, str, "your diagnosis")
            if answer not in CAUSES:
                raise AssertionError(f"your diagnosis is {answer!r}; expected one of {CAUSES}")
            if answer != causes[letter]:
                raise AssertionError(
                    f"you call a run {answer!r} that is {causes[letter]!r}: {hints[causes[letter]]}"
                )
    falling = [5 - 0.02 * i for i in range(100)]
    broken = falling + [math.nan] * 100
    if student(broken, broken) != "diverged":
        raise AssertionError(
            "a run whose loss became NaN is 'diverged': comparisons with NaN are always False, "
            "so test math.isfinite first"
        )
    refuses(student, [], [], words="loss|empty")
