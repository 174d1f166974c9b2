"""Checks for the exercises of lesson 16. Each names the mistake it recognises.

N guesses, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)
from minillm.infer.sampling import draw
from minillm.infer.speculative import expected_speedup


def accept(student: Callable, *, seed: int = 0) -> None:
    """The rule on random distributions, with every number of kept guesses."""
    random = torch.Generator().manual_seed(seed)
    answer = student(
        torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]),
        torch.tensor([[0.2, 0.6, 0.2]]),
        [1],
        torch.tensor([0.6]),
    )
    assert_type(answer, tuple, "your result")
    assert_type(answer[0], int, "your n_kept")
    cases = []
    for _ in range(60):
        target = (1.5 * torch.randn(4, 7, generator=random)).softmax(-1)
        draft = (1.5 * torch.randn(3, 7, generator=random)).softmax(-1)
        tokens = draw(draft, torch.rand(3, generator=random)).tolist()
        cases.append((target, draft, tokens, torch.rand(3, generator=random)))
    answers = [student(*case) for case in cases]
    for _, rest in answers:
        assert_shape(rest, (7,), "your rest")
    n_right = [_n_kept(*case) for case in cases]
    assert set(n_right) == {0, 1, 2, 3}, "the inputs must show every number of kept guesses"
    assert_equal(
        [n for n, _ in answers],
        n_right,
        name="your n_kept of 60 cases",
        mistakes={m: [_n_kept(*case, rule=rule) for case in cases] for m, rule in _RULES.items()},
    )
    pairs = list(zip(cases, n_right, strict=True))
    assert_close(
        torch.stack([rest for _, rest in answers]),
        torch.stack([_rest(*case, n) for case, n in pairs]),
        name="your rest of 60 cases",
        mistakes={m: torch.stack([_rest(*case, n, m) for case, n in pairs]) for m in _RESTS},
    )
    target, draft, tokens, uniforms = cases[0]
    assert_unchanged(
        lambda p, q, u: student(p, q, tokens, u), target, draft, uniforms, name="accept"
    )
    refuses(student, target[:3], draft, tokens, uniforms, words="rows")


def _in_a_row(kept: Tensor) -> int:
    return int(kept.long().cumprod(0).sum())


def _rule(p: Tensor, q: Tensor, u: Tensor) -> int:
    return _in_a_row(u < p / q)


_RULES: dict[str, Callable[[Tensor, Tensor, Tensor], int]] = {
    "you compare with p alone; a guess is kept with probability p / q": (
        lambda p, q, u: _in_a_row(u < p)
    ),
    "you divide q by p; the ratio is p / q": lambda p, q, u: _in_a_row(u < q / p),
    "you keep only guesses with p ≥ q; below that they are kept with probability p / q": (
        lambda p, q, u: _in_a_row(p >= q)
    ),
    "you keep what should be refused": lambda p, q, u: _in_a_row(u >= p / q),
    "you count guesses after a refusal; nothing after it counts": (
        lambda p, q, u: int((u < p / q).sum())
    ),
}


def _n_kept(
    target: Tensor, draft: Tensor, tokens: Sequence[int], uniforms: Tensor, rule: Callable = _rule
) -> int:
    places = torch.arange(len(tokens))
    return rule(target[places, tokens], draft[places, tokens], uniforms)


_RESTS = (
    "after a refusal you draw from p; draw from what p has more of than q",
    "your rest does not sum to 1: scale it",
    "your rest is what q has more of than p; it is the other way round",
    "your rest may be negative: clamp p − q at 0",
    "your rest belongs to the place after the refused guess",
    "if all guesses are kept, the next token comes from the last row of target",
)


def _rest(
    target: Tensor, draft: Tensor, tokens: Sequence[int], uniforms: Tensor, n: int, wrong: str = ""
) -> Tensor:
    """Where the next token comes from after n kept guesses, rightly or with one of the mistakes."""
    if n == len(tokens):
        return target[-2] if wrong == _RESTS[5] else target[-1]
    gap = (draft[n] - target[n]) if wrong == _RESTS[2] else (target[n] - draft[n])
    missing = gap.clamp(min=0)
    instead = {
        _RESTS[0]: target[n], _RESTS[1]: missing, _RESTS[3]: gap, _RESTS[4]: target[n + 1],
    }  # fmt: skip
    return instead.get(wrong, missing / missing.sum())


def best_number(student: Callable, *, seed: int = 0) -> None:
    """Against all numbers tried one by one."""
    answer = student(0.8, 0.1, 8)
    assert_type(answer, tuple, "your result")
    assert_type(answer[0], int, "your n")
    random = torch.Generator().manual_seed(seed)
    cases = [(0.8, 0.1, 8), (0.3, 0.5, 8), (0.95, 0.02, 3), (1.0, 0.2, 5), (0.0, 0.0, 4)]
    cases += [(*torch.rand(2, generator=random).tolist(), 6) for _ in range(6)]
    for rate, cost, largest in cases:
        n, speedup = student(rate, cost, largest)
        wrong = _wrong_numbers(rate, cost, largest)
        right = _fastest(lambda n, r=rate, c=cost: expected_speedup(r, n, c), largest)
        where = f"for rate {rate:.3g}, cost {cost:.3g}, largest {largest}"
        for mistake, (bad_n, bad_speedup) in wrong.items():
            if (bad_n, round(bad_speedup, 9)) != (right[0], round(right[1], 9)) and (
                n == bad_n and abs(speedup - bad_speedup) < 1e-6
            ):
                raise AssertionError(mistake)
        assert_equal(n, right[0], name=f"your n {where}")
        assert_close(speedup, right[1], name=f"your speed-up {where}")
    refuses(student, 1.2, 0.1, 4, words="rate")
    refuses(student, -0.1, 0.1, 4, words="rate")


def _fastest(speedup: Callable[[int], float], largest: int, first: int = 0) -> tuple[int, float]:
    best = max(range(first, largest + 1), key=lambda n: (speedup(n), -n))
    return best, speedup(best)


def _wrong_numbers(rate: float, cost: float, largest: int) -> dict[str, tuple[int, float]]:
    def written(n: int) -> float:
        return sum(rate**i for i in range(n + 1))

    return {
        "you forget the token that the model adds itself: the sum has n + 1 terms": _fastest(
            lambda n: max(sum(rate**i for i in range(n)), n == 0) / (n * cost + 1), largest
        ),
        "you count every guess as kept on its own: guess i needs all before it": _fastest(
            lambda n: (1 + n * rate) / (n * cost + 1), largest
        ),
        "you forget the model's own pass: a round costs n · cost + 1": _fastest(
            lambda n: written(n) / (n * cost) if n and cost else 1.0, largest
        ),
        "guesses cost time, too: divide by n · cost + 1": _fastest(written, largest),
        "you leave out n = 0: sometimes no guess is best": _fastest(
            lambda n: expected_speedup(rate, n, cost), largest, first=1
        ),
        "you stop before `largest`; it may be used, too": _fastest(
            lambda n: expected_speedup(rate, n, cost), largest - 1
        ),
    }


def block_tables(student: Callable, *, seed: int = 0) -> None:
    """Random texts with common beginnings, of lengths that fill blocks and do not."""
    example = [[1, 2, 3], [1, 2, 4], [9, 9, 1, 2]]
    assert_type(student(example, 2), list, "your tables")
    random = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(8):
        start = [5, 6, 7, 8, 5, 6, 7, 8][: int(torch.randint(0, 9, (1,), generator=random))]
        n = int(torch.randint(1, 6, (1,), generator=random))
        texts.append(start + torch.randint(5, 7, (n,), generator=random).tolist())
    texts += [texts[0], [5, 6, 7, 8], [5, 6, 7, 8], [9, 9, 5, 6, 7, 8, 1]]
    for case, size in ((example, 2), (texts, 2), (texts, 4), (texts, 3), (texts, 1)):
        right = _tables(case, size)
        wrong = {
            "you share blocks with the same tokens but another past; keys depend on all before": (
                _tables(case, size, past=False)
            ),
            "you share blocks that are not full: their owners would write into each other's": (
                _tables(case, size, full=False)
            ),
            "you share nothing": _tables(case, size, share=False),
            "your blocks are numbered anew in each text": [list(range(len(t))) for t in right],
            "your tables miss the last block, which is not full": _tables(
                [text[: len(text) // size * size] for text in case], size
            ),
        }
        wrong = {message: tables for message, tables in wrong.items() if tables != right}
        name = f"your tables at a block size of {size}"
        assert_equal(student(case, size), right, name=name, mistakes=wrong)
    refuses(student, texts, 0, words="block_size")


def _tables(
    texts: Sequence[Sequence[int]], size: int, past=True, full=True, share=True
) -> list[list[int]]:
    """By definition; each switch turns one rule off."""
    known: dict[object, int] = {}
    tables, n = [], 0
    for row, text in enumerate(texts):
        table = []
        for start in range(0, len(text), size):
            end = start + size
            key: object = tuple(text[:end]) if past else tuple(text[start:end])
            if not share or (full and end > len(text)):
                key = (row, start, "its own")
            if key not in known:
                known[key], n = n, n + 1
            table.append(known[key])
        tables.append(table)
    return tables


def fair_schedule(student: Callable, *, seed: int = 0) -> None:
    """Random arrivals, unsorted, with more requests than places."""
    example = ([0, 0, 1, 2], [2, 5, 2, 2], 1)
    assert_type(student(*example), list, "your steps")
    random = torch.Generator().manual_seed(seed)
    cases = [example]
    for places in (1, 2, 3):
        arrivals = torch.randint(0, 9, (9,), generator=random).tolist()
        cases.append((arrivals, torch.randint(1, 7, (9,), generator=random).tolist(), places))
    for case in cases:
        right = _served(*case)
        wrong = {
            "the bug is still there: the shortest request goes first": _served(
                *case, order=lambda i, case=case: case[1][i]
            ),
            "your longest request goes first; whoever came first starts first": _served(
                *case, order=lambda i, case=case: -case[1][i]
            ),
            "whoever came last starts first": _served(*case, last=True),
            "your requests start in the order of their numbers, not of their arrival": _served(
                *case, order=lambda i: i
            ),
            "your steps are one too late: admitted in step t, n tokens end in step t + n − 1": [
                step + 1 for step in right
            ],
            "you give the steps in which requests start, not those in which they finish": [
                step - n + 1 for step, n in zip(right, case[1], strict=True)
            ],
            "you start the next request only when the whole batch has ended": _served(
                *case, static=True
            ),
        }
        wrong = {message: steps for message, steps in wrong.items() if steps != right}
        assert_equal(student(*case), right, name="your steps", mistakes=wrong)


def _served(
    arrivals: Sequence[int], lengths: Sequence[int], places: int, order=None, last=False,
    static=False,
) -> list[int]:  # fmt: skip
    """The step at which each request finishes."""
    waiting: list[int] = []
    ends: dict[int, int] = {}
    running: dict[int, int] = {}
    step = 0
    while len(ends) < len(lengths):
        waiting += [i for i, t in enumerate(arrivals) if t == step]
        if order is not None:
            waiting.sort(key=order)
        may_start = not (static and running)
        while may_start and waiting and len(running) < places:
            i = waiting.pop(-1 if last else 0)
            running[i] = step + lengths[i] - 1
        ends |= {i: end for i, end in running.items() if end == step}
        running = {i: end for i, end in running.items() if end > step}
        step += 1
    return [ends[i] for i in range(len(lengths))]


def step_limit(
    student: Callable, steps: Sequence[float], share: float, cure: str, *, seed: int = 0
) -> None:
    """Both limits on random machines, and the judgement about the server."""
    assert_type(student(1e9, 16, 1, 1e12, 1e14, 0), tuple, "your result")
    random = torch.Generator().manual_seed(seed)
    gpu = (3.35e12, 989e12, 8192 * 131_072)
    cases = [(1e9, 16, 1, 1e12, 1e14, 0), (8e9, 16, 32, *gpu), (8e9, 8, 700, *gpu[:2], 0)]
    for _ in range(6):
        a, b, c = torch.rand(3, generator=random).tolist()
        cases.append((1e9 * (1 + a), 4, 1 + int(60 * b), 1e12, 5e13, 3e7 * c))
    right = [_limit(*case) for case in cases]
    answers = [student(*case) for case in cases]
    wrong = [_wrong_limits(*case) for case in cases]
    assert_close(
        [seconds for seconds, _ in answers],
        [seconds for seconds, _ in right],
        name="your seconds on nine machines",
        mistakes={message: [values[message] for values in wrong] for message in wrong[0]},
        atol=0,
    )
    for (_, limit), (_, expected), case in zip(answers, right, cases, strict=True):
        assert_equal(limit, expected, name=f"your limit for {case}")
    refuses(student, 1e9, 16, 0, 1e12, 1e14, 0, words="batch")

    right_steps = [_limit(8e9, 16, batch, *gpu)[0] for batch in (1, 32, 256)]
    assert_close(
        list(steps), right_steps, name="steps", atol=0,
        mistakes={
            "your steps leave out the cache: 8192 · 131072 bytes for each text": [
                _limit(8e9, 16, batch, *gpu[:2], 0)[0] for batch in (1, 32, 256)
            ],
            "your cache has one token; the context has 8192": [
                _limit(8e9, 16, batch, *gpu[:2], 131_072)[0] for batch in (1, 32, 256)
            ],
        },
    )  # fmt: skip
    weights, cache = 16e9, 32 * gpu[2]
    assert_close(
        share, cache / (cache + weights), name="share", rtol=1e-3,
        mistakes={
            "that is the share of the weights": weights / (cache + weights),
            "that is the cache over the weights; divide by both together": cache / weights,
            "that is the share at a batch of 1": gpu[2] / (gpu[2] + weights),
        },
    )  # fmt: skip
    assert_equal(
        cure, "b", name="cure",
        mistakes={
            "(a): the weights are only a third of what a step reads here": "a",
            "(c): this step waits for memory, so faster arithmetic changes nothing": "c",
        },
    )  # fmt: skip


def _limit(
    n_weights: float, bits: int, batch: int, bandwidth: float, speed: float, cache: float
) -> tuple[float, str]:
    bills = {
        "memory": (n_weights * bits / 8 + batch * cache) / bandwidth,
        "arithmetic": 2 * n_weights * batch / speed,
    }
    return max(bills.values()), max(bills, key=bills.__getitem__)


def _wrong_limits(
    n_weights: float, bits: int, batch: int, bandwidth: float, speed: float, cache: float
) -> dict[str, float]:
    weights, caches = n_weights * bits / 8, batch * cache
    memory, arithmetic = (weights + caches) / bandwidth, 2 * n_weights * batch / speed
    return {
        "you take bits for bytes: divide by 8": max((8 * weights + caches) / bandwidth, arithmetic),
        "you add the two; they overlap, so the longer one counts": memory + arithmetic,
        "you take the shorter of the two; the longer one sets the time": min(memory, arithmetic),
        "each text of the batch has a cache of its own": max(
            (weights + cache) / bandwidth, arithmetic
        ),
        "the weights are read once for the whole batch, not once for each text": max(
            (batch * weights + caches) / bandwidth, arithmetic
        ),
        "each weight takes two operations a text: multiply, and add": max(memory, arithmetic / 2),
        "every text of the batch needs its own operations": max(memory, arithmetic / batch),
    }
