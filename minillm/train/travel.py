"""Functions of a notebook, packed to run in another process.

What is imported travels by its name. What a notebook or a script itself defines travels by value:
functions and classes, and the globals of the notebook that they read.
"""

import dis
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType
from typing import Any

import dill


def pack(function: Callable, args: tuple) -> bytes:
    """A call, for `unpack` in another process."""
    # dill's own search for globals (recurse=True) follows imported functions too, without end.
    return dill.dumps((notebook_globals(function, *args), function, args))


def unpack(packed: bytes) -> tuple[Callable, tuple]:
    """The function and its arguments; the globals it reads become this process's."""
    names, function, args = dill.loads(packed)
    vars(sys.modules["__main__"]).update(names)
    return function, args


def notebook_globals(*things: Any) -> dict[str, Any]:
    """The globals of `__main__` that functions and classes defined there read, directly or not."""
    main = vars(sys.modules["__main__"])
    found: dict[str, Any] = {}
    todo = list(things)
    while todo:
        for code in _codes(todo.pop()):
            for step in dis.get_instructions(code):
                name = step.argval
                if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and name in main:
                    if name not in found:
                        todo.append(main[name])
                    found[name] = main[name]
    return found


def _codes(thing: Any) -> Iterator[CodeType]:
    """The code of a function, class or instance that `__main__` defines, nested code included."""
    if isinstance(thing, CodeType):
        yield thing
        parts = [part for part in thing.co_consts if isinstance(part, CodeType)]
    elif isinstance(thing, partial):
        parts = [thing.func, *thing.args, *thing.keywords.values()]
    elif getattr(thing, "__module__", None) != "__main__":
        parts = []
    elif hasattr(thing, "__code__"):
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        parts = [thing.__code__, *cells, *(thing.__defaults__ or ())]
    else:
        kind = thing if isinstance(thing, type) else type(thing)
        parts = [*vars(kind).values(), *kind.__bases__]
    for part in parts:
        yield from _codes(part)
