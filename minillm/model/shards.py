"""Folders of weights as Hugging Face lays them out: safetensors, in one file or in several.

Several files come with an index that says which tensor is where.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"


def safetensors_files(folder: Path) -> list[Path]:
    """The files with the weights: what the index lists, or the one file, or all there are.

    Raises:
        ValueError: there are none, or the index points outside its folder.
    """
    index = folder / INDEX
    if index.exists():
        names = sorted(set(read_json(index)["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError(f"{index} points outside its folder: {names}")
        return [folder / name for name in names]
    whole = folder / "model.safetensors"
    files = [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no .safetensors file; pickled weights are never loaded")
    return files


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} holds no {path.name}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None


def write_shards(folder: Path, tensors: dict[str, Tensor], shard_bytes: int) -> None:
    """Write the tensors in their order, starting a new file where one would grow too large."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    names = ["model.safetensors"]
    if len(shards) > 1:
        n = len(shards)
        names = [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
        where = {key: file for file, shard in zip(names, shards, strict=True) for key in shard}
        size = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": where}
        write_json(folder / INDEX, index)
    for file, shard in zip(names, shards, strict=True):
        whole = {name: tensor.cpu().contiguous() for name, tensor in shard.items()}
        save_file(whole, folder / file, metadata={"format": "pt"})


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
