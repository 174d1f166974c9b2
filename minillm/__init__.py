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
    n_cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = {"cuda": n_cards, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        return torch.device(next(kind for kind, n in there.items() if n))
    try:
        chosen = torch.device(name)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in there:
        raise ValueError(f"device={name!r}: expected 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'")
    if (chosen.index or 0) >= there[chosen.type]:
        raise ValueError(f"device={name!r} is not available on this machine; use 'auto' or 'cpu'")
    return chosen
