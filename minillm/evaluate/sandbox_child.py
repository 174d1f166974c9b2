"""The inside of the sandbox: give up every right, then execute a program.

`sandbox.py` starts this file as a process of its own, with the task as JSON on standard input
and the number of a pipe for results as its argument. It imports nothing but the standard
library, so that it starts fast and holds nothing worth reading.

The wall is the kernel, not Python: a seccomp filter lists the system calls a pure computation
needs (read, write, memory, clocks, exit) and answers "operation not permitted" to all others.
There is no opening of files, no socket, no new process or thread, no signal to anyone, and no
way to lift a limit again. What the program may import must therefore be loaded before.

Source: Linux man-pages, seccomp(2), prctl(2), setrlimit(2), capabilities(7).
"""

import builtins
import ctypes
import io
import json
import linecache
import os
import resource
import signal
import socket
import sys
import traceback
from math import ceil

READY = b"ready\n"
OUT_OF_MEMORY = 77  # the exit status that tells the parent about a MemoryError

# Modules a program finds when it imports them; from the filter on no file can be opened.
MODULES = """
    abc array base64 bisect calendar cmath collections contextlib copy dataclasses datetime decimal
    encodings.ascii encodings.latin_1 enum fractions functools hashlib heapq io itertools json math
    numbers operator random re statistics string struct textwrap time types typing unicodedata
    _strptime
"""


def _table(text: str) -> dict[str, int]:
    words = text.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


# The system calls of a pure computation, by architecture: (the kernel's name for the
# architecture, {call: number}). The program may use nothing else.
ALLOWED = {
    "x86_64": (
        0xC000003E,
        _table(
            "read 0 write 1 close 3 fstat 5 lseek 8 mmap 9 mprotect 10 munmap 11 brk 12 "
            "rt_sigaction 13 rt_sigprocmask 14 rt_sigreturn 15 sched_yield 24 mremap 25 "
            "madvise 28 nanosleep 35 getpid 39 exit 60 gettimeofday 96 getrusage 98 times 100 "
            "sigaltstack 131 gettid 186 time 201 futex 202 restart_syscall 219 clock_gettime 228 "
            "clock_getres 229 clock_nanosleep 230 exit_group 231 getrandom 318"
        ),
    ),
    "aarch64": (
        0xC00000B7,
        _table(
            "read 63 write 64 close 57 fstat 80 lseek 62 mmap 222 mprotect 226 munmap 215 brk 214 "
            "rt_sigaction 134 rt_sigprocmask 135 rt_sigreturn 139 sched_yield 124 mremap 216 "
            "madvise 233 nanosleep 101 getpid 172 exit 93 gettimeofday 169 getrusage 165 times 153 "
            "sigaltstack 132 gettid 178 futex 98 restart_syscall 128 clock_gettime 113 "
            "clock_getres 114 clock_nanosleep 115 exit_group 94 getrandom 278"
        ),
    ),
}

# Berkeley packet filter: one instruction is (code, jump if true, jump if false, constant).
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
CALL_NUMBER, ARCHITECTURE = 0, 4  # where a filter finds them in what it is shown
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # 1 is EPERM


def seccomp_filter(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter for "x86_64" or "aarch64": allow the calls listed above and refuse the rest.

    A call made under another architecture's numbering ends the process: its numbers would mean
    other calls.
    """
    architecture, calls = ALLOWED[machine]
    numbers = list(calls.values())
    return [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, CALL_NUMBER),
        *((JUMP_IF_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("constant", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("start", ctypes.POINTER(_Instruction)))


def _drop_powers() -> None:
    """Keep none of the administrator's powers: some act through calls that stay allowed.

    (madvise can take memory out of use for the whole machine; capabilities(7), madvise(2).)
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version_and_self = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice 32 of each
    if libc.capset(version_and_self, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")


def _prctl(option: int, *values) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [*values, 0, 0, 0, 0][:4]
    words = [v if isinstance(v, ctypes._SimpleCData) else ctypes.c_ulong(v) for v in arguments]
    if libc.prctl(option, *words) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def confine(seconds: float, memory_bytes: int) -> None:
    """Set the limits, then close the door; there is no way back for this process.

    Raises:
        OSError: the kernel grants no limit or no filter, or the filter does not hold.
    """
    _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: do not outlive the parent
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = ceil(used.ru_utime + used.ru_stime + seconds)
    for kind, limit in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        most = resource.getrlimit(kind)[1]
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(kind, (limit, limit))
    code = [_Instruction(*line) for line in seccomp_filter(os.uname().machine)]
    program = _Program(len(code), (_Instruction * len(code))(*code))
    _drop_powers()
    _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    address = ctypes.c_void_p(ctypes.addressof(program))
    _prctl(22, ctypes.c_ulong(2), address)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    for attempt in (lambda: os.open("/", os.O_RDONLY), socket.socket, os.fork):
        try:
            attempt()
        except PermissionError:
            continue
        os._exit(1)  # the kernel said yes to the filter and does not keep to it


def execute(task: dict, say) -> None:
    """Run the task's program; in a task that calls a function, say each call's outcome."""
    name = "<program>"
    text = task["program"]
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    function = task["function"]
    namespace = {"__name__": "__main__" if function is None else "program"}
    exec(compile(text, name, "exec"), namespace)
    for index, arguments in enumerate(task["arguments"]):
        try:
            outcome = json.dumps({"call": index, "value": namespace[function](*arguments)})
        except Exception as error:
            outcome = json.dumps({"call": index, "error": f"{type(error).__name__}: {error}"})
        say(outcome.encode() + b"\n")


def main() -> None:
    results = int(sys.argv[1])
    task = json.load(sys.stdin)
    os.close(0)  # the task's file; closing sys.stdin would leave it open
    stdin = task["stdin"].encode("utf-8", "replace")
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    builtins.exit = builtins.quit = sys.exit  # `site`, which makes them, is not loaded
    for module in MODULES.split():
        __import__(module)
    confine(task["seconds"], task["memory_bytes"])
    os.write(results, READY)
    try:
        execute(task, lambda line: os.write(results, line))
    except MemoryError:
        os.write(2, b"MemoryError\n")
        os._exit(OUT_OF_MEMORY)
    except Exception as error:
        # Our own frames are not the program's business.
        trace = error.__traceback__.tb_next
        traceback.print_exception(type(error), error, trace.tb_next if trace else None)
        sys.exit(1)


if __name__ == "__main__":
    main()
