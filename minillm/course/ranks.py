"""Ranks as threads of one process, for exercises that are about who sends what to whom.

Real ranks are processes (`minillm.train.processes`) and take seconds to start; these take
microseconds, carry only tensors without gradients, and notice when nobody can go on.

    results, links = simulate(lambda x, link: link.all_reduce(x), 2, [ones, ones])
"""

import threading
from collections import defaultdict, deque
from collections.abc import Callable

import torch
from torch import Tensor


class Stuck(AssertionError):
    """Every rank that is still at work waits for a message, and none is on its way."""


class Link:
    """What one rank knows of the others: its number, theirs, and how to reach them."""

    def __init__(self, network: "_Network", rank: int):
        self._network, self.rank, self.n = network, rank, network.n
        self.sent: list[tuple[int, int]] = []  # (to whom, how many numbers)
        self.n_reductions = 0

    def send(self, tensor: Tensor, to: int) -> None:
        """Put a copy of the tensor on its way to rank `to`, and do not wait."""
        self.sent.append((to, tensor.numel()))
        self._network.post("message", self.rank, to, tensor)

    def receive(self, source: int) -> Tensor:
        """Wait for the next tensor from rank `source`."""
        return self._network.collect("message", source, self.rank)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of what all ranks give; each of them has to call it."""
        self.n_reductions += 1
        for rank in range(self.n):
            self._network.post("sum", self.rank, rank, tensor)
        parts = [self._network.collect("sum", rank, self.rank) for rank in range(self.n)]
        return torch.stack(parts).sum(0)


class _Network:
    """Mail boxes between n threads, and the certainty when nobody can go on."""

    def __init__(self, n: int):
        self.n, self.at_work, self.stuck = n, n, False
        self.boxes: dict[tuple, deque[Tensor]] = defaultdict(deque)
        self.waiting: dict[int, tuple] = {}  # rank -> the box it waits at
        self.changed = threading.Condition()

    def post(self, kind: str, source: int, to: int, tensor: Tensor) -> None:
        with self.changed:
            self.boxes[kind, source, to].append(tensor.detach().clone())
            self.changed.notify_all()

    def collect(self, kind: str, source: int, to: int) -> Tensor:
        box = (kind, source, to)
        with self.changed:
            self.waiting[to] = box
            while not self.boxes[box]:
                self._look_round()
                if self.stuck:
                    raise Stuck(f"rank {to} waits for rank {source}, which sends it nothing more")
                self.changed.wait()
            del self.waiting[to]
            return self.boxes[box].popleft()

    def leave(self) -> None:
        with self.changed:
            self.at_work -= 1
            self._look_round()

    def _look_round(self) -> None:
        hopeless = [box for box in self.waiting.values() if not self.boxes[box]]
        self.stuck |= len(hopeless) == self.at_work
        if self.stuck:
            self.changed.notify_all()


def simulate(function: Callable, n: int, *arguments: list) -> tuple[list, list[Link]]:
    """Run ``function(*its arguments, link)`` on n ranks at once.

    Args:
        arguments: for each argument a list with one value a rank.

    Returns:
        What each rank returned, and the links, which remember what was sent.

    Raises:
        Whatever a rank raised, the lowest rank first; `Stuck` if all of them wait for each other.
    """
    network = _Network(n)
    links = [Link(network, rank) for rank in range(n)]
    results: list = [None] * n
    errors: list[BaseException | None] = [None] * n

    def live(rank: int) -> None:
        try:
            results[rank] = function(*(values[rank] for values in arguments), links[rank])
        except BaseException as error:
            errors[rank] = error
        finally:
            network.leave()

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [error for error in errors if error is not None]
    # A rank that fails leaves others waiting: its own error is the one to hear about.
    for error in sorted(found, key=lambda error: isinstance(error, Stuck)):
        raise error
    return results, links
