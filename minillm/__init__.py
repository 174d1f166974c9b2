"""minillm: every idea behind modern language models, built by hand on one small package."""

import torch

__version__ = "0.1.0"


def device(name: str = "auto") -> torch.device:
    """Pick the device a lesson runs on: CUDA, then Apple's MPS, then the CPU.

    Args:
        name: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        ValueError: the name is unknown, or this machine has no such device.
    """
    has_cuda = torch.cuda.is_available()
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device={name!r}: expected 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'")
    if (kind == "cuda" and not has_cuda) or (kind == "mps" and not has_mps):
        raise ValueError(f"device={name!r} is not available on this machine; use 'auto' or 'cpu'")
    return torch.device(name)
