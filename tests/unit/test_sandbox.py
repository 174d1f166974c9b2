"""The sandbox against hostile programs: none may hang, harm or score."""

import http.server
import os
import platform
import select
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic

import pytest

from minillm.evaluate import sandbox
from minillm.evaluate.sandbox import Limits, SandboxUnavailable, call, passes, run
from minillm.evaluate.sandbox_child import (
    ALLOW,
    ALLOWED,
    ARCHITECTURE,
    JUMP_IF_EQUAL,
    KILL,
    LOAD,
    REFUSE,
    RETURN,
    seccomp_filter,
)

QUICK = Limits(seconds=0.4)

# Elsewhere there is nothing to confine with, and the sandbox must refuse (tested on every system).
confined = pytest.mark.skipif(
    sandbox.why_not() is not None, reason=f"no limits here: {sandbox.why_not()}"
)


def as_function(hostile: str) -> str:
    """A wrong `double` that tries something hostile whenever it is called."""
    body = "\n".join("    " + line for line in hostile.splitlines())
    return f"def double(x):\n{body}\n    return 3 * x\n"


@confined
def test_what_an_honest_program_prints_and_returns():
    ended = run("print(sum(map(int, input().split())))", stdin="3 4")
    assert (ended.status, ended.stdout, ended.stderr) == ("ok", "7\n", "")
    program = (
        "import math\ndef f(x, y=2):\n    print('seen')\n    return [math.gcd(x, y), {'k': x}]"
    )
    ended, calls = call(program, "f", [[4], (9, 6)])
    assert (ended.status, ended.stdout) == ("ok", "seen\nseen\n")
    assert [c.value for c in calls] == [[2, {"k": 4}], [3, {"k": 9}]]


@confined
def test_programs_find_the_modules_that_need_no_files():
    program = "import random, re, itertools, datetime, heapq, dataclasses, decimal, json, string\n"
    program += "from collections import Counter\nimport time\ntime.sleep(0.01)\n"
    program += "print(datetime.datetime.strptime('2020-01-02', '%Y-%m-%d').day, 'é'.encode('ascii',"
    program += " 'replace'), random.random() < 1, len(set('aab')))"
    ended = run(program)
    assert (ended.status, ended.stdout) == ("ok", "2 b'?' True 2\n"), ended.stderr
    assert "No module named 'torch'" in run("import torch").stderr


@confined
def test_two_runs_print_the_same_order_of_a_set():
    runs = {run("print({'a', 'b', 'c', 'd', 'e', 'f'})").stdout for _ in range(3)}
    assert len(runs) == 1


@confined
@pytest.mark.parametrize(
    ("program", "status", "words"),
    [
        ("1 / 0", "error", "ZeroDivisionError: division by zero"),
        ("x = [", "error", "SyntaxError"),
        ("\0", "error", "null bytes"),
        ("print('\ud800')", "error", "surrogates"),
        ("import sys\nsys.exit(3)", "error", ""),
        ("exit(0)", "ok", ""),
        ("def f():\n    return f()\nf()", "error", "RecursionError"),
        ("import ctypes\nctypes.string_at(0)", "crashed", ""),
        ("(" * 300, "error", "too many nested parentheses"),
    ],
)
def test_how_programs_end(program, status, words):
    ended = run(program)
    assert ended.status == status
    assert words in ended.stderr
    assert "sandbox_child" not in ended.stderr  # an error report shows the program, not us


ENDLESS = {
    "a loop": "while True: pass",
    "a sleep": "import time\nwhile True: time.sleep(100)",
    "one call into C that never returns": "sum(iter(int, 1))",
    "a computation that cannot be interrupted": "10 ** 10 ** 10",
    "signals ignored": (
        "import signal\n"
        "for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "    signal.signal(s, signal.SIG_IGN)\n"
        "while True: pass"
    ),
    "every channel closed": (
        "import os\n"
        "for fd in range(100):\n"
        "    try: os.close(fd)\n"
        "    except OSError: pass\n"
        "while True: pass"
    ),
    "all exceptions caught": (
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    ),
    "refused calls, again and again": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    ),
    "a regular expression that explodes": "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
    "an error whose text never ends": (
        "class Endless(Exception):\n    def __str__(self):\n        while True: pass\nraise Endless"
    ),
    "an object that cannot be thrown away": (
        "class Sticky:\n    def __del__(self):\n        while True: pass\nSticky()"
    ),
}


@confined
@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_program_is_stopped(name):
    start = monotonic()
    assert run(ENDLESS[name], limits=QUICK).status == "time"
    assert monotonic() - start < sandbox.START_SECONDS  # stopped, not waited for
    assert passes(as_function(ENDLESS[name]), "double", [([1], 2)], QUICK) == [False]


@confined
def test_the_kernel_stops_a_program_whose_parent_looks_away(monkeypatch):
    """For a parent whose clock stands still, the limit on CPU time ends the program."""
    monkeypatch.setattr(sandbox, "monotonic", lambda: 0.0)
    assert run("while True: pass", limits=QUICK).status == "time"


@confined
def test_the_program_dies_with_its_parent():
    code = (
        "from minillm.evaluate import sandbox\n"
        "def listen(child, results, limits):\n"
        "    assert results.read(6) == sandbox.READY\n"
        "    print(child.pid, flush=True)\n"
        "    child.wait()\n"
        "sandbox._listen = listen\n"
        "sandbox.run('import time; time.sleep(100)')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    poll = os.pidfd_open(child)  # readable once the process has ended
    try:
        parent.kill()
        parent.wait()
        ended, _, _ = select.select([poll], [], [], 20)
        assert ended, "the program outlived its parent"
    finally:
        os.close(poll)


@confined
def test_the_program_keeps_none_of_the_administrators_powers(monkeypatch):
    """Even where the tests run as root: some of its powers act through calls that stay allowed."""
    status = []

    def listen(child, results, limits):
        assert results.read(6) == sandbox.READY
        status.append(Path(f"/proc/{child.pid}/status").read_text())
        heard = sandbox._Heard()
        heard.started = 0.0
        return heard

    monkeypatch.setattr(sandbox, "_listen", listen)
    run("import time; time.sleep(100)")
    fields = dict(line.split(":", 1) for line in status[0].splitlines())
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(fields[kind], 16) == 0, kind
    assert fields["NoNewPrivs"].strip() == "1"
    assert fields["Seccomp"].strip() == "2"


@confined
@pytest.mark.parametrize(
    "program",
    [
        "x = []\nwhile True: x.append(bytearray(10**6))",
        "x = [0]\nwhile True: x = x + x",
        "'a' * 10**12",
        "import itertools\nlist(itertools.count())",
    ],
)
def test_a_memory_bomb_meets_its_limit(program):
    ended = run(program, limits=Limits(seconds=20))
    assert (ended.status, ended.stderr) == ("memory", "MemoryError\n")


@confined
def test_the_memory_limit_is_the_one_that_was_set():
    take = "x = bytearray(200 * 2**20); print(len(x))"
    assert run(take, limits=Limits(memory_bytes=128 * 2**20)).status == "memory"
    assert run(take, limits=Limits(memory_bytes=512 * 2**20)).status == "ok"
    assert run("print(1)", limits=Limits(memory_bytes=64 * 2**20)).status == "ok"


@confined
@pytest.mark.parametrize(
    "program",
    [
        "while True: print('x' * 1000)",
        "import sys\nwhile True: sys.stderr.write('x' * 1000)",
        "import os\nwhile True:\n    for fd in range(3, 64):\n        try: os.write(fd, b'x' * 999)"
        "\n        except OSError: pass",
        "print('x' * 100_000)",
    ],
)
def test_huge_output_is_cut(program):
    ended = run(program, limits=Limits(seconds=20, output_bytes=10_000))
    assert ended.status == "output"
    assert len(ended.stdout) + len(ended.stderr) < 10_000 + 2**17


FORBIDDEN = {
    "write a file": "open({path!r}, 'w').write('x')",
    "write beside itself": "import os\nos.open('here', os.O_CREAT | os.O_WRONLY)",
    "delete a file": "import os\nos.remove({path!r})",
    "rename a file": "import os\nos.rename({path!r}, {path!r} + '2')",
    "make a directory": "import os\nos.mkdir({path!r} + 'd')",
    "read a file": "print(open({path!r}).read())",
    "read its parent's memory": "import os\nopen(f'/proc/{{os.getppid()}}/mem', 'rb')",
    "list a directory": "import os\nprint(os.listdir('/'))",
    "open a socket": "import socket\nsocket.socket()",
    "connect": "import socket\nsocket.socket().connect(('127.0.0.1', {port}))",
    "fork": "import os\nos.fork()",
    "a fork bomb": "import os\nwhile True: os.fork()",
    "start a program": "import os\nos.execv('/bin/sh', ['sh'])",
    "start a shell": "import os\nos.posix_spawn('/bin/sh', ['sh'], {{}})",
    "start a thread": "import _thread\n_thread.start_new_thread(print, ())",
    "kill its parent": "import os\nos.kill({parent}, 9)",
    "kill its group": "import os\nos.killpg(0, 9)",
    "lift a limit": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
    "trace its parent": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "if libc.ptrace(16, {parent}, 0, 0) < 0: raise PermissionError(ctypes.get_errno())",
    "fork below Python": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "if libc.fork() < 0: raise PermissionError(ctypes.get_errno())",
    "open a file below Python": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "if libc.openat(-100, {path!r}.encode(), 0) < 0: raise PermissionError(ctypes.get_errno())",
    "a queue of system calls": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "if libc.syscall(425, 1, 0) < 0: raise PermissionError(ctypes.get_errno())",
    "a file in memory": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "if libc.memfd_create(b'x', 0) < 0: raise PermissionError(ctypes.get_errno())",
    "a timer": "import signal\ntry: signal.setitimer(signal.ITIMER_REAL, 0.1)\n"
    "except signal.ItimerError as error: raise PermissionError(*error.args)",
    "drop the filter": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "if libc.prctl(22, 0, 0, 0, 0) < 0: raise PermissionError(ctypes.get_errno())",
    "use the other system-call table": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "if libc.syscall(0x40000000 + 2, b'/', 0) < 0: raise PermissionError(ctypes.get_errno())",
}


REFUSALS = ("PermissionError", "can't start new thread", "not allowed to raise maximum limit")


@pytest.fixture(scope="module")
def witness(tmp_path_factory):
    """A file and a server on this machine that a program must not reach."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle(self):
            asked.append(self.client_address)

    path = tmp_path_factory.mktemp("outside") / "file"
    path.write_text("secret")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"path": str(path), "port": server.server_port, "parent": os.getpid()}, asked
        server.shutdown()


@confined
@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_reaches_outside_is_refused(name, witness):
    names, asked = witness
    program = FORBIDDEN[name].format(**names)
    ended = run(program + "\nprint('reached')", limits=Limits(seconds=20))
    assert ended.status == "error"
    assert any(words in ended.stderr for words in REFUSALS), ended.stderr
    assert ended.stdout == ""
    folder = os.path.dirname(names["path"])
    assert os.listdir(folder) == ["file"]
    assert Path(names["path"]).read_text() == "secret"
    assert not asked
    assert passes(as_function(program), "double", [([1], 2)]) == [False]


@confined
def test_nothing_of_ours_is_inherited(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "token")
    program = (
        "import os\nprint(sorted(os.environ))\n"
        "for fd in range(200):\n"
        "    try: os.lseek(fd, 0, 0)\n"
        "    except OSError as error:\n"
        "        assert error.errno in (9, 29), (fd, error)  # not open, or a pipe\n"
        "    else: print('open file', fd)\n"
    )
    with open(tmp_path / "held", "w+") as file:
        os.set_inheritable(file.fileno(), True)
        # Python itself sets LC_CTYPE while it starts.
        assert run(program).stdout == "['LC_CTYPE', 'PYTHONHASHSEED', 'PYTHONUTF8']\n"


def test_bad_arguments_are_refused():
    for field, value in (("seconds", 0), ("memory_bytes", 2**20), ("output_bytes", 1)):
        with pytest.raises(ValueError, match=f"{field}={value}: expected|{field}={value}: Python"):
            Limits(**{field: value})
    with pytest.raises(ValueError, match="cannot be handed over as JSON"):
        passes("", "f", [([1], {1})])


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Windows", "AMD64")])
def test_where_limits_are_missing_it_refuses_and_says_so(system, machine, monkeypatch, tmp_path):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sandbox.subprocess, "Popen", lambda *a, **k: pytest.fail("it ran"))
    with pytest.raises(SandboxUnavailable, match=rf"64-bit Linux.*this is {system} on {machine}"):
        run("print(1)")
    assert sandbox.why_not()


@confined
@pytest.mark.parametrize("break_it", ["no filter", "a filter that lets all through"])
def test_a_kernel_that_grants_no_filter_runs_nothing(break_it, tmp_path, monkeypatch):
    child = sandbox._CHILD.read_text("utf-8")
    old, new = {
        "no filter": ("_prctl(22, ctypes.c_ulong(2)", "_prctl(22, ctypes.c_ulong(99)"),
        "a filter that lets all through": ("(RETURN, 0, 0, REFUSE)", "(RETURN, 0, 0, ALLOW)"),
    }[break_it]
    assert old in child
    (tmp_path / "child.py").write_text(child.replace(old, new), "utf-8")
    monkeypatch.setattr(sandbox, "_CHILD", tmp_path / "child.py")
    with pytest.raises(SandboxUnavailable, match="nothing was run"):
        run("print('I ran')")


def decide(program, architecture: int, number: int) -> int:
    """What a filter returns, by the rules of the packet filter's three instructions."""
    position, loaded = 0, None
    while True:
        code, if_true, if_false, constant = program[position]
        position += 1
        if code == LOAD:
            loaded = architecture if constant == ARCHITECTURE else number
        elif code == JUMP_IF_EQUAL:
            position += if_true if loaded == constant else if_false
        else:
            assert code == RETURN
            return constant


@pytest.mark.parametrize("machine", ALLOWED)
def test_the_filter_allows_the_listed_calls_and_no_other(machine):
    architecture, calls = ALLOWED[machine]
    program = seccomp_filter(machine)
    for number in [*range(600), *range(0x40000000, 0x40000300), 2**32 - 1]:
        expected = ALLOW if number in calls.values() else REFUSE
        assert decide(program, architecture, number) == expected
    (other,) = (kernel_name for kernel_name, _ in ALLOWED.values() if kernel_name != architecture)
    for strange in (other, 0x40000003):  # the latter is 32-bit x86
        assert decide(program, strange, calls["read"]) == KILL


def test_the_filters_of_both_machines_allow_the_same():
    x86, arm = (set(calls) for _, calls in ALLOWED.values())
    assert x86 - arm == {"time"}  # newer architectures have only clock_gettime
    assert arm <= x86
    dangerous = "open openat socket connect clone clone3 fork vfork execve kill tgkill ptrace prctl"
    assert not x86 & set(dangerous.split())
