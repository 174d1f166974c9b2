"""Adapters on disk: a few hundred kilobytes that belong to a model of hundreds of megabytes.

One format, the one of the `peft` library: ``adapter_config.json`` and
``adapter_model.safetensors``. The names in it are the published ones of the model's family, taken
from the family's table, so an adapter trained here works there and the other way round.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minillm.adapt.lora import AdaptedLinear, LoRA, Update, adapted_layers, add_lora, named_updates
from minillm.adapt.quant_linear import QuantLinear
from minillm.model.families import FAMILIES
from minillm.model.transformer import Transformer, check_shapes, shapes_of

PREFIX = "base_model.model."
# Our fused layers and their parts, in the order in which a family's table lists them.
FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
# Settings of peft that change what an adapter computes, and the only value we can express.
PLAIN = {
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": None,
    "alpha_pattern": None,
    "lora_bias": None,
    "layers_to_transform": None,
    "use_qalora": None,
}


def save_adapters(model: Transformer, folder: str | Path, family: str, lora: LoRA) -> None:
    """Write the adapters of a model, whole or not at all.

    Args:
        folder: is created, and replaces an older one of that name.
        family: the model's, a key of ``FAMILIES``; it decides the names.
        lora: what `add_lora` was given.

    Raises:
        ValueError: the model has no adapters, or the family has no name for one of them.
    """
    published = published_parts(model, family)
    tensors, targets = {}, set()
    for part, update in named_updates(model).items():
        if part not in published:
            raise ValueError(f"a {family} has no tensor for {part}; adapt the whole layer instead")
        targets.add(published[part].rpartition(".")[2])
        for name, tensor in published_tensors(update).items():
            tensors[f"{PREFIX}{published[part]}.{name}"] = tensor.detach().cpu().contiguous()
    if not tensors:
        raise ValueError("the model has no adapters to save; add_lora gives it some")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(targets),
        "use_rslora": lora.rank_stabilized,
        "use_dora": lora.dora,
        "fan_in_fan_out": family == "gpt2",  # whose files hold inputs first
        "bias": "none",
    }
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        (temporary / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_adapters(model: Transformer, folder: str | Path, family: str) -> LoRA:
    """Add the adapters in ``folder`` to a model that has none.

    Returns:
        Their choices, to go on training and to save them again.

    Raises:
        ValueError: not a LoRA adapter, settings we cannot express, or tensors that are missing,
            surplus or of another shape (all of them are listed).
    """
    folder = Path(folder)
    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} holds no readable adapter: {error}") from error
    _check_settings(settings)
    published = published_parts(model, family)
    stored = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in tensors}
    targets = tuple(part for part, name in published.items() if name in stored)
    if not targets:
        raise ValueError(f"{folder} adapts nothing of a {family}: {sorted(tensors)[:3]} …")
    lora = LoRA(
        rank=settings["r"],
        alpha=settings["lora_alpha"],
        targets=targets,
        rank_stabilized=settings.get("use_rslora", False),
        dora=settings.get("use_dora", False),
    )
    _fill(model, lora, published, tensors)
    return lora


@torch.no_grad()
def _fill(model: Transformer, lora: LoRA, published: dict, tensors: dict[str, Tensor]) -> None:
    add_lora(model, lora)
    places = {
        f"{PREFIX}{published[part]}.{name}": tensor
        for part, update in named_updates(model).items()
        for name, tensor in published_tensors(update).items()
    }
    try:
        check_shapes(shapes_of(places), shapes_of(tensors))
    except ValueError:
        _take_off(model)
        raise
    for name, place in places.items():
        place.copy_(tensors[name])


def _take_off(model: nn.Module) -> None:
    """Leave the model as it was found."""
    for name, layer in adapted_layers(model).items():
        model.set_submodule(name, layer.base)
    model.requires_grad_(True)


def _check_settings(settings: dict) -> None:
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"peft_type={settings.get('peft_type')!r}: only LORA adapters are read")
    for name, only in PLAIN.items():
        found = settings.get(name)
        if found and found != only:
            raise ValueError(f"the adapter has {name}={found!r}, which we cannot express")


def published_tensors(update: Update) -> dict[str, Tensor]:
    """An adapter's tensors by the names `peft` gives them."""
    named = {"lora_A.weight": update.a, "lora_B.weight": update.b}
    if hasattr(update, "lengths"):
        named["lora_magnitude_vector"] = update.lengths
    return named


def published_targets(model: Transformer, family: str) -> tuple[str, ...]:
    """All that can be adapted in a block and be saved, for ``LoRA(targets=…)``.

    Raises:
        ValueError: an unknown family.
    """
    names = [name for name in published_parts(model, family) if name.startswith("blocks.")]
    return tuple(dict.fromkeys(name.split(".", 2)[2] for name in names))


def published_parts(model: Transformer, family: str) -> dict[str, str]:
    """What a family calls the parts that can be adapted: ours → theirs, without ".weight".

    Raises:
        ValueError: an unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} is not known; known are {sorted(FAMILIES)}")
    kinds = nn.Linear | QuantLinear | AdaptedLinear
    linear = {n for n, m in model.named_modules() if isinstance(m, kinds)}
    names = {}
    for row in FAMILIES[family].table(model.config):
        layer, _, kind = row.ours.rpartition(".")
        if kind != "weight" or layer not in linear:
            continue
        theirs = [name.removesuffix(".weight") for name in row.theirs]
        parent, _, short = layer.rpartition(".")
        parts = [f"{parent}.{part}" for part in FUSED[short]] if len(theirs) > 1 else [layer]
        names |= dict(zip(parts, theirs, strict=True))
    return names
