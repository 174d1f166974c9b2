"""Run generated code without trusting it.

    run('print(sum(map(int, input().split())))', stdin="3 4")       -> Run("ok", stdout="7\\n", …)
    call("def double(x): return 2 * x", "double", [[3], [[1]]])     -> values 6 and [1, 1]
    passes("def double(x): return 2 * x", "double", [([3], 6)])     -> [True]

A program runs in a process of its own, with an empty environment, no open files but its three
channels, bounded time, memory and output, none of an administrator's powers, and a kernel filter
that leaves it only the system calls of a pure computation (`sandbox_child.py`): no files, network,
processes or signals.

Two rules keep it from scoring without solving. The expected answers never enter its process:
it hands back values, as JSON, and they are compared out here. And how it ended proves nothing:
a program that leaves with status 0, or whose objects claim to equal everything, has still not
produced the value. So no test is ever executed *inside* the sandbox as an `assert`.

What it cannot do: protect from a flaw in the kernel itself. For code written by an adversary,
put a virtual machine around it. Where the kernel's limits are missing (anything but Linux on
x86-64 or arm64) it refuses, and says so.
"""

import json
import os
import platform
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from minillm.evaluate.sandbox_child import ALLOWED, OUT_OF_MEMORY, READY

START_SECONDS = 30.0  # a busy machine may take a while to start a process; the program pays nothing
_CHILD = Path(__file__).with_name("sandbox_child.py")
_NOT_REACHED = "the program ended before this call"


class SandboxUnavailable(RuntimeError):
    """This machine cannot confine a program, so none is run."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    `seconds` are wall-clock seconds from the program's start, and as many of CPU time, rounded
    up; `memory_bytes` is address space, of which Python itself takes about 30 MB; `output_bytes`
    goes for each channel: standard output, standard error, results.
    """

    seconds: float = 2.0
    memory_bytes: int = 256 * 2**20
    output_bytes: int = 64 * 2**10

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 3600:
            raise ValueError(f"seconds={self.seconds}: expected more than 0 and at most 3600")
        if self.memory_bytes < 64 * 2**20:
            raise ValueError(
                f"memory_bytes={self.memory_bytes}: Python needs at least 64 MiB (2**26)"
            )
        if self.output_bytes < 1024:
            raise ValueError(f"output_bytes={self.output_bytes}: expected at least 1024")


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Run:
    """How a program ended and what it printed.

    `status`: "ok" (it ended by itself, with exit status 0), "error" (an exception, or another
    exit status), "time", "memory" or "output" (it met that limit), "crashed" (killed by a signal
    of its own making, such as a segmentation fault). Evidence of nothing but that; a program can
    also leave with the exit status that stands for "memory".
    """

    status: str
    stdout: str
    stderr: str
    seconds: float


@dataclass(frozen=True)
class Call:
    """What one call gave: a JSON value, or in `error` why there is none."""

    value: Any = None
    error: str | None = None


def why_not() -> str | None:
    """Why this machine cannot confine a program; None where it can try."""
    system, machine = platform.system(), platform.machine()
    if system == "Linux" and machine in ALLOWED and sys.maxsize > 2**32:
        return None
    return (
        f"running generated code needs the limits of 64-bit Linux on {' or '.join(ALLOWED)}, and "
        f"this is {system} on {machine}; use a Linux machine, container or virtual machine (on "
        "Windows: WSL)"
    )


def run(program: str, stdin: str = "", limits: Limits = DEFAULT_LIMITS) -> Run:
    """Run a Python program on `stdin` and return what it printed.

    Raises:
        SandboxUnavailable: this machine cannot confine it; nothing was run.
    """
    return _confined(program, stdin, None, (), limits)[0]


def call(
    program: str, function: str, arguments: Sequence[Sequence], limits: Limits = DEFAULT_LIMITS
) -> tuple[Run, list[Call]]:
    """Run a program that defines `function`, and call it on each list of arguments in turn.

    All calls share one process and its limits. Arguments and values are JSON: a tuple comes back
    as a list, and what JSON cannot hold is an error of that call.

    Raises:
        SandboxUnavailable: this machine cannot confine it; nothing was run.
        ValueError: an argument is not JSON.
    """
    arguments = [list(given) for given in arguments]
    ended, lines = _confined(program, "", function, arguments, limits)
    calls = [Call(error=_NOT_REACHED)] * len(arguments)
    for line in lines:
        outcome = _parse(line, len(arguments))
        if outcome and calls[outcome[0]].error == _NOT_REACHED:
            calls[outcome[0]] = outcome[1]
    return ended, calls


def passes(
    program: str,
    function: str,
    cases: Sequence[tuple[Sequence, Any]],
    limits: Limits = DEFAULT_LIMITS,
) -> list[bool]:
    """Does `function` return the expected value in each (arguments, expected) case?

    The program sees the arguments only; the values are compared here. Numbers compare by value
    (2 == 2.0), but True is not 1.
    """
    expected = [json.loads(_to_json(value)) for _, value in cases]
    _, calls = call(program, function, [given for given, _ in cases], limits)
    return [
        outcome.error is None and _same(outcome.value, value)
        for outcome, value in zip(calls, expected, strict=True)
    ]


def _same(value: Any, expected: Any) -> bool:
    """JSON values compared as deep as `expected` goes, however deep the other is."""
    if isinstance(expected, list):
        alike = isinstance(value, list) and len(value) == len(expected)
        return alike and all(map(_same, value, expected))
    if isinstance(expected, dict):
        alike = isinstance(value, dict) and value.keys() == expected.keys()
        return alike and all(_same(value[key], expected[key]) for key in expected)
    if isinstance(value, (list, dict)) or isinstance(value, bool) != isinstance(expected, bool):
        return False
    return value == expected


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value)
    except TypeError as error:
        raise ValueError(f"{value!r} cannot be handed over as JSON: {error}") from error


def _parse(line: bytes, n_calls: int) -> tuple[int, Call] | None:
    """One line of the results channel; None if it is not one that we would have written.

    The program can write there too. It gains nothing: a value is right or it is not.
    """
    try:
        outcome = json.loads(line)
        index = outcome["call"]
        if type(index) is not int or not 0 <= index < n_calls:
            return None
        if "value" in outcome:
            return index, Call(outcome["value"])
        return index, Call(error=str(outcome["error"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _confined(
    program: str, stdin: str, function: str | None, arguments: Sequence[Sequence], limits: Limits
) -> tuple[Run, list[bytes]]:
    """Start the child, listen to it, and see to it that it is gone: (its end, lines of results)."""
    if reason := why_not():
        raise SandboxUnavailable(reason)
    task = {"program": program, "stdin": stdin, "function": function, "arguments": arguments}
    task |= {"seconds": limits.seconds, "memory_bytes": limits.memory_bytes}
    readable, writable = os.pipe()
    with tempfile.TemporaryFile() as given, open(readable, "rb", buffering=0) as results:
        try:
            given.write(_to_json(task).encode())
            given.seek(0)
            child = subprocess.Popen(
                [sys.executable, "-P", "-s", "-S", "-B", str(_CHILD), str(writable)],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(writable,),
                env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},  # nothing of ours
                cwd="/",
                start_new_session=True,
                bufsize=0,
            )
        finally:
            os.close(writable)
        with child:
            try:
                heard = _listen(child, results, limits)
            finally:
                child.kill()
    return _judge(heard, child.returncode)


class _Heard:
    """What came through the child's channels, and which limit cut it short."""

    def __init__(self) -> None:
        self.text = {"stdout": bytearray(), "stderr": bytearray(), "results": bytearray()}
        self.started: float | None = None
        self.ended = 0.0
        self.limit: str | None = None


def _listen(child: subprocess.Popen, results, limits: Limits) -> _Heard:
    """Read all channels until the child ends or meets a limit. Never waits without an end."""
    heard = _Heard()
    deadline = monotonic() + START_SECONDS
    with selectors.DefaultSelector() as selector:
        channels = {"stdout": child.stdout, "stderr": child.stderr, "results": results}
        for name, channel in channels.items():
            selector.register(channel, selectors.EVENT_READ, name)
        while selector.get_map() and heard.limit is None:
            for key, _ in selector.select(max(0.0, deadline - monotonic())):
                chunk = os.read(key.fd, 2**16)
                if not chunk:
                    selector.unregister(key.fileobj)
                heard.text[key.data] += chunk
                if len(heard.text[key.data]) > limits.output_bytes:
                    heard.limit = "output"
            if heard.started is None and heard.text["results"].startswith(READY):
                heard.started = monotonic()
                deadline = heard.started + limits.seconds
            if monotonic() > deadline:
                heard.limit = "time"
    if heard.limit is None:  # all channels are closed; the child may still be there
        try:
            child.wait(max(0.0, deadline - monotonic()))
        except subprocess.TimeoutExpired:
            heard.limit = "time"
    heard.ended = monotonic()
    return heard


def _judge(heard: _Heard, returncode: int) -> tuple[Run, list[bytes]]:
    texts = {name: bytes(text).decode("utf-8", "replace") for name, text in heard.text.items()}
    if heard.started is None:
        reason = texts["stderr"].strip().splitlines()[-1:] or [f"exit status {returncode}"]
        raise SandboxUnavailable(
            "this machine refused the limits that generated code must run under, so nothing was "
            f"run: {reason[0]}"
        )
    status = {0: "ok", OUT_OF_MEMORY: "memory", -signal.SIGKILL: "time"}.get(returncode)
    status = heard.limit or status or ("error" if returncode > 0 else "crashed")
    lines = bytes(heard.text["results"]).removeprefix(READY).splitlines()
    return Run(status, texts["stdout"], texts["stderr"], heard.ended - heard.started), lines
