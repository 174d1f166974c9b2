"""How many bytes of tensors a computation holds, at every moment of it.

The operating system sees pages that a process has touched, and an allocator that gives them back
late. Here every tensor is counted when it is made and when it is dropped, so that the same run
gives the same number on every machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of tensors while it is entered, those of the backward pass included.

        with TensorMemory(model) as memory:
            loss(model(tokens)).backward()
        memory.peak, memory.live

    What a single operation uses inside and drops again is not seen, and what lies in a file
    (`torch.from_file`) takes no memory. On the meta device, where tensors have shapes and no
    numbers, the bytes count that they would take: a step of any model is measured in seconds.
    Counting slows small operations down.

    Args:
        held: models and tensors that exist before, and count from the start.

    Attributes:
        live: bytes that are held now.
        peak: the most that were held at once.
        history: ``live`` at the start and after every change.
    """

    def __init__(self, *held: nn.Module | Tensor):
        super().__init__()
        self.live = self.peak = 0
        self.history: list[int] = []
        self._known: set[int] = set()  # addresses of the storages that are alive
        for thing in held:
            is_module = isinstance(thing, nn.Module)
            self._count(thing.state_dict(keep_vars=True).values() if is_module else [thing])
        self.history = [self.live]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self._count(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def _count(self, tensors: Iterable[Tensor]) -> None:
        """Views share the storage of their base, which counts once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._known and not storage.filename:
                self._known.add(key)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._drop, key, storage.nbytes()).atexit = False

    def _drop(self, key: int, n_bytes: int) -> None:
        self._known.discard(key)
        self._change(-n_bytes)

    def _change(self, n_bytes: int) -> None:
        self.live += n_bytes
        self.peak = max(self.peak, self.live)
        self.history.append(self.live)
