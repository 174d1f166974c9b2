"""Checks for the exercises of lesson 15. Each names the mistake it recognises."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.course.checks.common import assert_close, assert_equal, assert_type, refuses
from minillm.course.ranks import Link, simulate


def ring_all_reduce(student: Callable, *, seed: int = 0) -> None:
    """Sums on 2 to 5 ranks, of lengths that n does not divide; who sends how much to whom."""
    random = torch.Generator().manual_seed(seed)
    for n, length in ((2, 4), (3, 7), (4, 12), (5, 3)):
        given = [torch.randn(length, generator=random) for _ in range(n)]
        before = [x.clone() for x in given]
        results, links = simulate(student, n, given)
        right = torch.stack(before).sum(0)
        for rank, answer in enumerate(results):
            assert_close(
                answer,
                right,
                name=f"the sum at rank {rank} of {n}, {length} numbers",
                mistakes=_wrong_sums(before, rank),
            )
        for now, then in zip(given, before, strict=True):
            if not torch.equal(now, then):
                raise AssertionError("ring_all_reduce changes x in place; work on a copy")
        _assert_ring(links, n, length)

    def sum_of_matrices() -> None:
        simulate(student, 2, [torch.ones(2, 2)] * 2)

    refuses(sum_of_matrices, words="1-D|dimension")


def _wrong_sums(given: list[Tensor], rank: int) -> dict[str, Tensor]:
    n, total = len(given), torch.stack(given).sum(0)
    # A chunk sets out from the rank of its own number; these are its sums at each rank up to ours.
    grown = [
        torch.stack([given[(c + i) % n].tensor_split(n)[c] for i in range((rank - c) % n + 1)])
        for c in range(n)
    ]
    half = torch.cat([parts.sum(0) for parts in grown])
    own, finished = (rank + 1) % n, total.tensor_split(n)
    added = torch.cat(
        [
            whole if c == own else whole + parts.cumsum(0).sum(0)
            for c, (whole, parts) in enumerate(zip(finished, grown, strict=True))
        ]
    )
    return {
        "you return what you were given": given[rank],
        "you return the mean; all-reduce is the sum": total / n,
        "you stop after the first half: one chunk is finished, the others are partial sums": half,
        "in the second half a finished sum replaces the chunk; you add it": added,
    }


def _assert_ring(links: list[Link], n: int, length: int) -> None:
    for link in links:
        if link.n_reductions:
            raise AssertionError("write it from send and receive; link.all_reduce is the answer")
        right, receivers = (link.rank + 1) % n, {to for to, _ in link.sent}
        if receivers != {right}:
            raise AssertionError(
                f"rank {link.rank} of {n} sends to ranks {sorted(receivers)}; in the ring it "
                f"talks only to rank {right}"
            )
    total, needed = sum(count for link in links for _, count in link.sent), 2 * (n - 1) * length
    if total != needed:
        raise AssertionError(
            f"all {n} ranks together send {total} numbers; the ring needs 2 (n − 1) · {length} = "
            f"{needed}. Send one chunk at a time, n − 1 times to add and n − 1 times to share"
        )


def parallel_mlp(student: Callable, *, seed: int = 0) -> None:
    """The sum of the parts is the MLP; what a rank does not own is filled with NaN."""
    random = torch.Generator().manual_seed(seed)
    N, C, n, units = 3, 5, 4, 3
    x = torch.randn(N, C, generator=random)
    up, down = (torch.randn(n * units, C, generator=random) for _ in range(2))
    up_bias = torch.randn(n * units, generator=random)
    bias = torch.randn(C, generator=random)
    down = down.T.contiguous()  # (C, F)

    def of_rank(rank: int) -> tuple[Tensor, Tensor, Tensor]:
        mine = torch.zeros(n * units, dtype=torch.bool)
        mine[rank * units : (rank + 1) * units] = True
        return (
            up.where(mine[:, None], torch.nan),
            up_bias.where(mine, torch.nan),
            down.where(mine, torch.nan),
        )

    parts = list(zip(*(of_rank(rank) for rank in range(n)), strict=True))
    results, links = simulate(student, n, [x] * n, *map(list, parts), [bias] * n)
    hidden = F.gelu(x @ up.T + up_bias)
    right = hidden @ down.T + bias
    for rank, answer in enumerate(results):
        mine = slice(rank * units, (rank + 1) * units)
        partial = hidden[:, mine] @ down[:, mine].T
        if isinstance(answer, Tensor) and answer.isnan().any():
            raise AssertionError(
                f"the result at rank {rank} is NaN: you use hidden units of another rank, which "
                "are NaN here (contiguous slices: rows of up and of its bias, columns of down)"
            )
        assert_close(
            answer,
            right,
            name=f"the result at rank {rank}",
            mistakes={
                "the bias of down is added by every rank, so the sum holds it n times; add it "
                "after the all-reduce": right + (n - 1) * bias,
                "you forgot the bias of down": right - bias,
                "you forgot the bias of up": F.gelu(x @ up.T) @ down.T + bias,
                "you forgot the all-reduce: this is one rank's part of the sum": partial + bias,
                "you forgot GELU": (x @ up.T + up_bias) @ down.T + bias,
            },
        )
    if any(link.n_reductions != 1 or link.sent for link in links):
        raise AssertionError("one all-reduce is enough: column first, row second, then the sum")

    def six_units_on_four_ranks() -> None:
        small = (x, up[:6], up_bias[:6], down[:, :6], bias)
        simulate(student, n, *([value] * n for value in small))

    refuses(six_units_on_four_ranks, words="divid|multiple")


def fixed_clip(student: Callable, *, seed: int = 0) -> None:
    """Long and short gradients, split unevenly, and one that is zero everywhere."""
    random = torch.Generator().manual_seed(seed)
    gradient = torch.randn(11, generator=random) * torch.linspace(0.2, 3, 11)
    shards = list(gradient.split([2, 5, 4]))
    norms = torch.stack([shard.norm() for shard in shards])
    whole = gradient.norm()
    for max_norm in (1.0, 50.0):
        results, _ = simulate(student, 3, shards, [max_norm] * 3)
        for rank, answer in enumerate(results):
            assert_type(answer, tuple, "your result")
            clipped, norm = answer

            def scaled(length: Tensor, rank: int = rank, max_norm: float = max_norm) -> Tensor:
                return shards[rank] * (max_norm / length).clamp(max=1)

            assert_close(
                norm,
                whole,
                name=f"the norm at rank {rank}",
                mistakes={
                    "the bug is still there: this is the norm of one rank's part": norms[rank],
                    "norms do not add up, their squares do": norms.sum(),
                    "you forgot the square root": whole**2,
                    "you take the mean of the squares over the ranks; the norm is of their sum": (
                        whole / 3**0.5
                    ),
                },
            )
            assert_close(
                clipped,
                scaled(whole),
                name=f"the gradient at rank {rank}, max_norm={max_norm:g}",
                mistakes={
                    "the bug is still there: you scale by the norm of one rank's part": scaled(
                        norms[rank]
                    ),
                    "a short gradient must stay as it is: you scale it up": shards[rank]
                    * (max_norm / whole),
                    "you return it unscaled": shards[rank],
                },
            )
    zeros, _ = simulate(student, 2, [torch.zeros(3), torch.zeros(2)], [1.0, 1.0])
    if any(clipped.isnan().any() for clipped, _ in zeros):
        raise AssertionError("a gradient of zeros becomes NaN: 0/0; it has to stay zero")

    def clip_to_zero() -> None:
        simulate(student, 1, [torch.ones(2)], [0.0])

    refuses(clip_to_zero, words="max_norm")


def one_f_one_b(student: Callable, *, seed: int = 0) -> None:
    """Orders of all stages for several p and m, against the rule and on a clock."""
    random = torch.Generator().manual_seed(seed)
    drawn = [tuple(torch.randint(2, 7, (2,), generator=random).tolist()) for _ in range(3)]
    for p, m in ((4, 8), (4, 2), (1, 3), (3, 3), *drawn):
        for stage in range(p):
            orders = student(stage, p, m)
            assert_type(orders, list, "your orders")
            for kind, name in (("F", "forward"), ("B", "backward")):
                numbers = [number for k, number in orders if k == kind]
                if sorted(numbers) != list(range(m)):
                    raise AssertionError(
                        f"stage {stage} of {p}: the {name} passes are {numbers}; expected each of "
                        f"the {m} micro-batches once"
                    )
            assert_equal(
                orders,
                _order(min(m, p - 1 - stage), m),
                name=f"the orders of stage {stage} of {p} with {m} micro-batches",
                mistakes=_wrong_orders(stage, p, m),
            )
    refuses(student, 4, 4, 8, words="stage")


def _order(warm: int, m: int) -> list[tuple[str, int]]:
    """`warm` forward passes, then one forward and one backward in turn, then what is left."""
    turns = [step for j in range(m - warm) for step in (("F", warm + j), ("B", j))]
    return [("F", j) for j in range(warm)] + turns + [("B", j) for j in range(m - warm, m)]


def _wrong_orders(stage: int, p: int, m: int) -> dict[str, list[tuple[str, int]]]:
    right = _order(min(m, p - 1 - stage), m)
    wrong = {
        "all forward passes come first: that is GPipe, which keeps m activations": _order(m, m),
        "every stage warms up alike; the later the stage, the shorter": _order(min(m, p - 1), m),
        "you warm up one pass too long": _order(min(m, p - stage), m),
        "you do not warm up: count the stages behind this one, p − 1 − stage": _order(0, m),
    }
    return {message: order for message, order in wrong.items() if order != right}


def bytes_per_gpu(
    student: Callable, fitting: list[str], choice: str, reason: str, *, seed: int = 0
) -> None:
    """The ZeRO paper's figure 1, random layouts, and where to put a model of 70B."""
    assert_close(
        [student(7.5e9, 1, 1, 64, stage) / 1e9 for stage in range(4)],
        [120, 31.40625, 16.640625, 1.875],
        name="GB for 7.5B parameters on 64 ranks, ZeRO stages 0 to 3",
        mistakes={
            "you divide everything at every stage": [1.875] * 4,
            "you divide nothing: the stage says what is shared out": [120.0] * 4,
            "your optimiser takes 8 bytes; 12: moments and weights in float32": [
                90, 30.9375, 16.171875, 1.40625,
            ],
        },
    )  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    for _ in range(4):
        t, p, d, stage = torch.randint(1, 9, (4,), generator=random).tolist()
        stage %= 4
        local = 3e9 / (t * p)
        shared = [0, 12, 14, 16][stage]
        assert_close(
            student(3e9, t, p, d, stage),
            local * (16 - shared + shared / d),
            name=f"bytes with tensor={t}, pipeline={p}, data={d}, stage {stage}",
            mistakes={
                "tensor and pipeline ranks share the parameters out, too: divide by both": 3e9
                * (16 - shared + shared / d),
            },
        )
    refuses(student, 1e9, 1, 1, 8, 4, words="stage")
    assert_equal(
        sorted(fitting),
        ["t16", "t2 p8", "t8 p2", "t8 p4", "t8 p8"],
        name="fitting (sorted)",
        mistakes={
            "t8 needs 48 GB with ZeRO-1; 40 GB are free": sorted(
                ["t8", "t16", "t2 p8", "t8 p2", "t8 p4", "t8 p8"]
            ),
        },
    )
    assert_equal(
        choice,
        "t8 p2",
        name="choice",
        mistakes={
            "t8 does not fit": "t8",
            "t16 has no bubble, but its tensor groups span two machines": "t16",
            "t8 p8 takes the least memory, but has a bubble of 5.2%, against 3.0%": "t8 p8",
            "t2 p8 waits for nearly a fifth of the time": "t2 p8",
        },
    )
    assert_equal(
        reason,
        "b",
        name="reason",
        mistakes={
            "(a): it fits: 70e9 · 16 / 64 is 17.5 GB": "a",
            "(c): the sum over the ranks is the same product, up to rounding": "c",
        },
    )
