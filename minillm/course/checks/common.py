"""What the checks of the exercises share: comparisons that name the mistake.

A check computes the right answer and, beside it, the answers that well-known mistakes give.
When a learner's answer equals one of those, the message says which mistake it is:

    assert_close(
        yours, softmax(scores / D**0.5) @ v, name="your output",
        mistakes={"your scores are divided by D, not by √D": softmax(scores / D) @ v},
    )

Choose inputs on which each mistake gives a different answer (batch of 3, D ≠ T, eps = 0.1).
A mistake's value may also be a function that returns it. `NotImplementedError` from an
untouched stub always passes through.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def assert_type(value: object, expected: type | tuple[type, ...], name: str = "your result"):
    """`value` must be an instance of `expected`; a bool does not pass for an int."""
    kinds = expected if isinstance(expected, tuple) else (expected,)
    if value is None and type(None) not in kinds:
        raise AssertionError(f"{name} is None: did you forget to return it?")
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise AssertionError(f"{name} is a {type(value).__name__}; expected {wanted}")


def assert_shape(
    tensor: Tensor, shape: Sequence[int], name="your result", mistakes: Mapping[str, object] = {}
):
    """`tensor` must have this shape; `mistakes` maps a message to the shape that betrays it."""
    assert_type(tensor, Tensor, name)
    actual = tuple(tensor.shape)
    if actual == tuple(shape):
        return
    for message, wrong in mistakes.items():
        if actual == tuple(wrong):
            raise AssertionError(f"{message} (shape {actual}, expected {tuple(shape)})")
    raise AssertionError(f"{name} has shape {actual}; expected {tuple(shape)}")


def assert_close(
    actual: object,
    expected: object,
    *,
    name: str = "your result",
    mistakes: Mapping[str, object] = {},
    rtol: float = 1e-4,
    atol: float = 1e-5,
):
    """Numbers, lists of numbers, arrays or tensors must agree within `atol + rtol·|expected|`.

    A tensor is answered with a tensor of the same shape and of the same kind of dtype
    (floating, integer or bool). `mistakes` is searched before anything else is said.
    """
    kind = Tensor if isinstance(expected, Tensor) else (int, float, Tensor, list, tuple)
    assert_type(actual, kind if kind is Tensor else (*kind, np.ndarray, np.generic), name)
    right, yours = _tensor(expected), _tensor(actual)
    if _close(yours, right, rtol, atol) and _dtype_kind(actual) == _dtype_kind(expected):
        return
    if not _close(yours, right, rtol, atol):
        _name_mistake(yours, mistakes, lambda a, b: _close(_tensor(a), _tensor(b), rtol, atol))
    if yours.shape != right.shape:
        raise AssertionError(f"{name} has shape {_shape(yours)}; expected {_shape(right)}")
    if _dtype_kind(actual) != _dtype_kind(expected):
        raise AssertionError(f"{name} has dtype {actual.dtype}; expected {expected.dtype}")
    bad_nan = yours.isnan() & ~right.isnan()
    if bad_nan.any():
        raise AssertionError(f"{name} is NaN in {int(bad_nan.sum())} of {yours.numel()} places")
    _fail_at_worst(yours, right, name, rtol, atol)


def assert_equal(
    actual: object,
    expected: object,
    *,
    name: str = "your result",
    mistakes: Mapping[str, object] = {},
):
    """Token lists, strings, bytes, dicts, sets: must be equal and of the same type."""
    assert_type(actual, type(expected), name)
    if actual == expected:
        return
    _name_mistake(actual, mistakes, lambda a, b: a == b)
    raise AssertionError(f"{name} is {_short(actual)}; expected {_short(expected)}")


def assert_same_gradients(
    function: Callable,
    reference: Callable,
    inputs: Sequence[Tensor],
    *,
    name: str = "your function",
    mistakes: Mapping[str, Callable] = {},
    rtol: float = 1e-4,
    atol: float = 1e-5,
):
    """Both functions must give the same gradient for every floating input.

    Each is called on fresh copies of `inputs`; its result is weighted by fixed, uneven numbers
    and summed, so that errors cannot cancel. `mistakes` maps a message to a wrong reference.
    """
    yours, right = _gradients(function, inputs, name), _gradients(reference, inputs, name)
    wrong = {
        message: (lambda f=f: torch.cat([g.flatten() for g in _gradients(f, inputs, name)]))
        for message, f in mistakes.items()
    }
    flat = torch.cat([g.flatten() for g in yours])
    if not _close(flat, torch.cat([g.flatten() for g in right]), rtol, atol):
        _name_mistake(flat, wrong, lambda a, b: _close(a, b, rtol, atol))
    for index, (mine, theirs) in enumerate(zip(yours, right, strict=True)):
        label = f"the gradient of {name} for argument {index + 1}"
        assert_close(mine, theirs, name=label, rtol=rtol, atol=atol)


def assert_unchanged(function: Callable, *inputs: Tensor, name: str = "your function"):
    """Calling `function` must not modify its tensor arguments in place."""
    before = [value.clone() for value in inputs]
    function(*inputs)
    for index, (now, then) in enumerate(zip(inputs, before, strict=True)):
        if not torch.equal(now, then):
            raise AssertionError(
                f"{name} changes its argument {index + 1} in place; work on a copy"
            )


def refuses(
    function: Callable, *args, words: str = "", error: type[Exception] = ValueError, **kwargs
):
    """`function(*args)` must raise `error`, with a message that matches the pattern `words`."""
    call = f"{getattr(function, '__name__', 'your function')}({_arguments(args, kwargs)})"
    try:
        result = function(*args, **kwargs)
    except NotImplementedError:
        raise
    except error as raised:
        if not re.search(words, str(raised), re.IGNORECASE):
            raise AssertionError(
                f"{call} raises {error.__name__}, but its message {str(raised)!r} "
                f"does not mention {words!r}"
            ) from None
    except Exception as raised:
        raise AssertionError(
            f"{call} raises {type(raised).__name__} ({_short(str(raised))}); "
            f"check the input first and raise {error.__name__}"
        ) from None
    else:
        raise AssertionError(
            f"{call} returns {_short(result)}; it should raise {error.__name__} for bad input"
        )


def _name_mistake(
    actual: object, mistakes: Mapping[str, object], same: Callable[[object, object], bool]
):
    for message, wrong in mistakes.items():
        if same(actual, wrong() if callable(wrong) else wrong):
            raise AssertionError(message)


def _tensor(value: object) -> Tensor:
    """As float64 without gradient, so that every dtype compares with every other."""
    try:
        return torch.as_tensor(value).detach().cpu().to(torch.float64)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{_short(value)} is not numbers of one shape: {error}") from None


def _close(a: Tensor, b: Tensor, rtol: float, atol: float) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)


def _dtype_kind(value: object) -> str:
    """Only tensors are held to a dtype; a Python 2 and a Python 2.0 are the same answer."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return "any"
    if value.dtype is torch.bool:
        return "bool"
    return "float" if value.is_floating_point() else "integer"


def _fail_at_worst(yours: Tensor, right: Tensor, name: str, rtol: float, atol: float):
    wrong = ~torch.isclose(yours, right, rtol=rtol, atol=atol, equal_nan=True)
    distance = (yours - right).abs().nan_to_num(nan=torch.inf) * wrong
    place = tuple(int(i) for i in np.unravel_index(int(distance.argmax()), tuple(right.shape)))
    where = f" at index {list(place)}" if place else ""
    count = f" ({int(wrong.sum())} of {wrong.numel()} numbers differ)" if place else ""
    raise AssertionError(
        f"{name} is {yours[place].item():.6g}{where}; expected {right[place].item():.6g}{count}"
    )


def _gradients(function: Callable, inputs: Sequence[Tensor], name: str) -> list[Tensor]:
    copies = [
        value.detach().clone().requires_grad_() if value.is_floating_point() else value.clone()
        for value in inputs
    ]
    result = function(*copies)
    assert_type(result, Tensor, f"the result of {name}")
    if not result.requires_grad:
        raise AssertionError(
            f"no gradient flows through {name}: do not use .detach(), .item(), .data or no_grad()"
        )
    weights = torch.linspace(0.5, 1.5, result.numel(), dtype=result.dtype, device=result.device)
    (result.flatten() * weights).sum().backward()
    return [
        torch.zeros_like(copy) if copy.grad is None else copy.grad
        for copy in copies
        if copy.is_floating_point()
    ]


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _short(value: object, limit: int = 160) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _arguments(args: tuple, kwargs: dict) -> str:
    parts = [_describe(value) for value in args]
    return ", ".join(parts + [f"{key}={_describe(value)}" for key, value in kwargs.items()])


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"tensor of shape {_shape(value)}"
    return _short(value, 60)
