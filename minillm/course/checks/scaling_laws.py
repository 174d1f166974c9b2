"""Checks for the exercises of lesson 12. Each names the mistake it recognises.

N parameters, D tokens, C floating-point operations of training, 6 N D.
"""

import math
from collections.abc import Callable, Sequence

import torch

from minillm.course.checks.common import assert_close, assert_equal, assert_type, refuses
from minillm.scaling.fit import fit_power
from minillm.scaling.isoflop import fit_valley
from minillm.scaling.laws import ChinchillaLaw

Law = tuple[float, float, float, float, float]  # E, A, alpha, B, beta


def fit_with_floor(student: Callable, *, seed: int = 0) -> None:
    """Losses with a known floor among the given ones, exact and with noise."""
    example = student([100.0, 1000.0, 10000.0], [1.5, 1.05, 1.005], [0.9, 1.0, 1.2])
    assert_type(example, tuple, "your result")
    assert_close(
        example,
        (1.0, 50.0, 1.0),
        name="your (E, A, alpha) of the example",
        mistakes={
            "your alpha is the slope; the slope of a falling line is −α": (1.0, 50.0, -1.0),
            "your A is ln A; take the exponential": (1.0, math.log(50), 1.0),
            "you give the first floor, not the best": lambda: _with_floors(*_EXAMPLE, [0.9]),
            "you fit ln L, not ln(L − E): the floor never enters": (
                _ends(fit_power(*_EXAMPLE), 0.9)
            ),
        },
    )
    random = torch.Generator().manual_seed(seed)
    sizes = [300.0, 900.0, 4000.0, 25000.0, 60000.0]
    noise = (0.01 * torch.randn(5, generator=random)).exp().tolist()
    losses = [0.8 + 9 * n**-0.35 * e for n, e in zip(sizes, noise, strict=True)]
    floors = [0.5, 0.6, 0.7, 0.8, 0.9, 1.5]
    assert_close(
        student(sizes, losses, floors),
        _with_floors(sizes, losses, floors),
        name="your (E, A, alpha)",
        mistakes={
            "you give the floor whose line leaves the most": lambda: _with_floors(
                sizes, losses, floors, worst=True
            ),
            "you give the last floor below the losses, not the best": lambda: _with_floors(
                sizes, losses, [0.9]
            ),
        },
    )
    refuses(student, sizes, losses, [2.5, 3.0], words="floors")


_EXAMPLE = ([100.0, 1000.0, 10000.0], [1.5, 1.05, 1.005])


def _with_floors(
    sizes: Sequence[float], losses: Sequence[float], floors: Sequence[float], worst: bool = False
) -> tuple[float, float, float]:
    """By the package's line; it is the sum of squares that decides, not r²."""
    fits = {}
    for floor in floors:
        if floor < min(losses):
            rests = [loss - floor for loss in losses]
            line = fit_power(sizes, rests)
            missed = (math.log(r / line(n)) for r, n in zip(rests, sizes, strict=True))
            fits[floor] = (sum(m**2 for m in missed), _ends(line, floor))
    return (max if worst else min)(fits.values())[1]


def _ends(line, floor: float) -> tuple[float, float, float]:
    return floor, line.scale, -line.exponent


def isoflop_minimum(student: Callable, *, seed: int = 0) -> None:
    """Parabolas through three and through five points, against the package's valley."""
    random = torch.Generator().manual_seed(seed)
    wide = [2e3, 5e3, 2e4, 6e4, 3e5]
    noise = (0.02 * torch.randn(5, generator=random)).tolist()
    bowl = [1 + 0.06 * math.log(n / 1.5e4) ** 2 + e for n, e in zip(wide, noise, strict=True)]
    for name, sizes, losses in (
        ("of the example", [10.0, 100.0, 1000.0], [3.0, 1.0, 2.0]),
        ("of five runs", wide, bowl),
    ):
        right = fit_valley(sizes, losses).n
        tens = torch.tensor(sizes).log10().tolist()
        answer = student(sizes, losses)
        assert_type(answer, float, "your N")
        assert_close(
            answer,
            right,
            name=f"your N {name}",
            mistakes={
                "your parabola is in N, not in ln N": _vertex(sizes, losses),
                "this is ln N; take the exponential": math.log(right),
                "you fit in log10 and go back with exp": math.exp(_vertex(tens, losses)),
                "you give the best of the sizes that were run; the bottom may lie between": min(
                    zip(losses, sizes, strict=True)
                )[1],
                "your vertex has the wrong sign: −c₁ / 2c₂": 1 / right,
                "your vertex is −c₁ / c₂; the derivative gives −c₁ / 2c₂": right**2,
            },
        )
    refuses(student, [10.0, 100.0, 1000.0], [1.0, 2.0, 1.5], words="valley")


def _vertex(u: Sequence[float], y: Sequence[float]) -> float:
    """Where the parabola through (u, y) has no slope."""
    u, y = torch.tensor(u, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    columns = torch.stack([torch.ones_like(u), u, u.square()], dim=1)
    _, c1, c2 = torch.linalg.lstsq(columns, y[:, None]).solution[:, 0].tolist()
    return -c1 / (2 * c2)


def spend(student: Callable, *, seed: int = 0) -> None:
    """Two laws and budgets, against the closed form; and nothing else near may be better."""
    assert_type(student(600.0, 1.0, 0.5, 1.0, 0.5), tuple, "your result")
    published = (5.76e23, 406.4, 0.34, 410.7, 0.28)
    random = torch.Generator().manual_seed(seed)
    drawn = (1 + torch.rand(5, generator=random)).tolist()
    small = (1e9 * drawn[0], 8 * drawn[1], 0.3 * drawn[2], 20 * drawn[3], 0.2 * drawn[4])
    for arguments in (published, small, (600.0, 2.0, 0.5, 1.0, 0.5)):
        flops, A, alpha, B, beta = arguments
        n, d = ChinchillaLaw(0.0, A, alpha, B, beta).optimum(flops)
        swapped = ChinchillaLaw(0.0, A, beta, B, alpha).optimum(flops)
        upside_down = ChinchillaLaw(0.0, B, alpha, A, beta)
        balanced = (A / B * (flops / 6) ** beta) ** (1 / (alpha + beta))
        assert_close(
            student(*arguments),
            (n, d),
            name=f"your (N, D) for a budget of {flops:.3g}",
            rtol=1e-3,
            mistakes={
                "you return (D, N)": (d, n),
                "you spend N D = flops; a token costs 6 N": ChinchillaLaw(
                    0.0, A, alpha, B, beta
                ).optimum(6 * flops),
                "your alpha and beta are exchanged": swapped,
                "your A and B are exchanged": upside_down.optimum(flops),
                "you make the two terms equal; α A / N^α and β B / D^β must be": (
                    balanced,
                    flops / 6 / balanced,
                ),
                "you split evenly, N = D": (math.sqrt(flops / 6),) * 2,
            },
        )
    refuses(student, 0.0, 1.0, 0.5, 1.0, 0.5, words="flops")
    refuses(student, -1.0, 1.0, 0.5, 1.0, 0.5, words="flops")


def data_exponent(student: Callable, advice: str, *, seed: int = 0) -> None:
    """A training run with a known law, that reads too high while its cosine is unfinished."""
    random = torch.Generator().manual_seed(seed)
    floor, B, beta = 0.7, 30.0, 0.3 + 0.1 * float(torch.rand((), generator=random))
    tokens = [1000, 3000, 20_000, 90_000]
    asked = []

    def train(planned: int, read: int) -> float:
        asked.append((planned, read))
        if read > planned:
            raise AssertionError(f"you read after {read} tokens of a run planned for {planned}")
        return floor + B / read**beta * (1 + 0.8 * (1 - read / planned))

    def exponent(losses: Sequence[float], floor: float = floor) -> float:
        return -fit_power(tokens, [loss - floor for loss in losses]).exponent

    finished = [floor + B / d**beta for d in tokens]
    flawed = [train(max(tokens), d) for d in tokens]
    asked.clear()
    answer = student(train, tokens, floor)
    assert_type(answer, float, "your exponent")
    assert_close(
        answer,
        beta,
        name="your exponent",
        mistakes={
            "the flaw is still there: a reading before the cosine ends is too high": (
                exponent(flawed)
            ),
            "your exponent is the slope; the slope of a falling line is −β": -beta,
            "you forgot to take the floor away": exponent(finished, 0.0),
            "you leave points out: every number of tokens gets a run of its own": (
                math.log(finished[0] - floor) - math.log(finished[-1] - floor)
            )
            / math.log(max(tokens)),
        },
    )
    if sorted(asked) != [(d, d) for d in tokens]:
        raise AssertionError(
            f"your runs (planned, read) are {sorted(set(asked))}; train one for each number of "
            "tokens, planned for as many, and read at its end"
        )
    wrong = {
        "a": "(a): more seems to come from data; but look at the exponent of N, β / (α + β)",
        "c": "(c): short readings are too high, so the line falls more steeply, not less",
        "d": "(d): short readings are too high, so the line falls more steeply, not less",
    }
    mistakes = {message: letter for letter, message in wrong.items()}
    assert_equal(advice, "b", name="advice", mistakes=mistakes)


def cheapest_size(
    student: Callable, for_research: float, for_users: float, verdict: str, *, seed: int = 0
) -> None:
    """A law by hand and Chinchilla's, with and without users, and the judgement."""
    law = (1.0, 10.0, 1.0, 10.0, 1.0)
    answer = student([40.0, 20.0, 10.0], 2.0, 0.0, law)
    assert_type(answer, float, "your size")
    assert_equal(answer, 20.0, name="the size of the example")
    random = torch.Generator().manual_seed(seed)
    chinchilla = (1.69, 406.4, 0.34, 410.7, 0.28)
    sizes = [1e9 * (2 * i + float(torch.rand((), generator=random))) for i in range(1, 60)]
    for served in (0.0, 3e12, 4e13):
        for target in (1.94, 2.0):
            arguments = (sizes, target, served, chinchilla)
            assert_equal(
                student(*arguments),
                _cheapest(*arguments),
                name=f"your size for a loss of {target} and {served:.0e} tokens served",
                mistakes=_wrong_sizes(*arguments),
            )
    refuses(student, [1e6, 1e7], 1.75, 0.0, chinchilla, words="target")
    steps = [5e9 * i for i in range(1, 21)]
    for name, value, served in (
        ("for_research", for_research, 0.0),
        ("for_users", for_users, 1e13),
    ):
        assert_type(value, (int, float), name)
        other = _cheapest(steps, 1.94, 1e13 - served, chinchilla)
        assert_close(
            value,
            _cheapest(steps, 1.94, served, chinchilla),
            name=name,
            mistakes={"for_research and for_users are exchanged": other},
        )
    assert_equal(
        verdict,
        "b",
        name="verdict",
        mistakes={
            "(a) is true of the training alone; what does each answer cost?": "a",
            "(c): the law was fitted so that one need not train both": "c",
        },
    )


def _cheapest(
    sizes: Sequence[float], target: float, served: float, law: Law, training: float = 6.0,
    serving: float = 2.0,
) -> float:  # fmt: skip
    E, A, alpha, B, beta = law
    costs = {}
    for n in sizes:
        left = target - E - A / n**alpha
        if left > 0:
            costs[n] = training * n * (B / left) ** (1 / beta) + serving * n * served
    return min(costs, key=costs.get)


def _wrong_sizes(sizes: Sequence[float], target: float, served: float, law: Law) -> dict:
    right = _cheapest(sizes, target, served, law)
    wrong = {
        "the tokens served are missing from your cost": _cheapest(sizes, target, 0.0, law),
        "a served token costs 2 N, only the forward pass": (
            _cheapest(sizes, target, served, law, 6.0, 6.0)
        ),
        "your D is (B / left)^β; solved for D it is (B / left)^(1/β)": (
            _cheapest(sizes, target, served, (*law[:4], 1 / law[4]))
        ),
    }
    if served:
        wrong["the training is missing from your cost"] = _cheapest(
            sizes, target, served, law, training=0.0
        )
    return {message: size for message, size in wrong.items() if size != right}
