"""Published models in our Transformer and back: Hugging Face folders, the hub, and GGUF files.

`minillm.model.families` says how each family writes its configuration and its tensors; one table
per family serves import, export, and the error that lists everything that does not fit.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from minillm.data import assets
from minillm.data.tokenizer import Tokenizer
from minillm.data.wordpiece import WordPiece
from minillm.model.config import ModelConfig
from minillm.model.encoder_decoder import EncoderDecoder
from minillm.model.families import FAMILIES
from minillm.model.families.common import Fields
from minillm.model.gguf import GGUF
from minillm.model.gguf_llama import gguf_config, gguf_name, half_split
from minillm.model.layouts import Row
from minillm.model.shards import read_json, safetensors_files, write_json, write_shards
from minillm.model.transformer import Transformer, check_shapes, own_tensors, shapes_of

# A family with an encoder has the configurations of both parts.
Config = ModelConfig | tuple[ModelConfig, ModelConfig]
SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Source:
    """Tensors to be read one at a time, so that nothing is held twice."""

    shapes: dict[str, tuple[int, ...]]
    take: Callable[[str], Tensor]


# Import ---------------------------------------------------------------------------------------


def from_pretrained(name: str | Path) -> tuple[Transformer | EncoderDecoder, Tokenizer | WordPiece]:
    """A model and its tokenizer.

    Args:
        name: a folder in Hugging Face's layout, a ``.gguf`` file, "smollm2", or else the name of a
            model on the hub, as "owner/model". From there only safetensors and JSON are fetched,
            never anything that could run.

    Raises:
        ValueError: there is no such model, or model or tokenizer are of a kind we do not know.
    """
    path = Path(name)
    if str(name) == "smollm2" and not path.exists():
        return smollm2()
    if path.suffix == ".gguf" and path.is_file():
        file = GGUF(path)
        return from_gguf(file), Tokenizer.from_gguf(file.metadata)
    folder = path if path.is_dir() else download(str(name))
    read_json(folder / "config.json")  # refuses a folder that holds no model
    tokenizer = read_tokenizer(folder)  # before the weights, because it fails faster
    return from_huggingface(folder), tokenizer


def family_of(name: str | Path) -> str:
    """The family, a key of ``FAMILIES``, of what `from_pretrained` would load."""
    path = Path(name)
    if path.suffix == ".gguf" or (str(name) == "smollm2" and not path.exists()):
        return "llama"
    folder = path if path.is_dir() else download(str(name))
    return read_json(folder / "config.json").get("model_type")


def download(name: str) -> Path:
    """The folder with a model of the hub, fetched once and then kept by `huggingface_hub`.

    Raises:
        ValueError: nothing has this name, or the hub cannot be reached.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.endswith(".gguf"):
        raise ValueError(
            f"no model {name!r}: expected a folder, a .gguf file, 'smollm2', or a name on the hub "
            "such as 'HuggingFaceTB/SmolLM2-135M'"
        )
    from huggingface_hub import snapshot_download  # takes a while to import

    patterns = ["*.safetensors", "*.json", "vocab.txt"]
    try:
        # Subfolders and "consolidated" files repeat the weights under other names.
        folder = snapshot_download(
            name, allow_patterns=patterns, ignore_patterns=["*/*", "consolidated*"]
        )
    except Exception as error:
        raise ValueError(f"the hub did not give {name!r}: {error}") from error
    return Path(folder)


def read_tokenizer(folder: Path) -> Tokenizer | WordPiece:
    """The tokenizer of a folder: byte-level BPE, or BERT's WordPiece.

    Raises:
        ValueError: there is none, or it is of another kind.
    """
    if (folder / "vocab.txt").exists():
        return WordPiece.from_huggingface(folder)
    path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.exists():
        raise ValueError(
            f"{folder} holds no tokenizer.json; from_huggingface loads the model without it"
        )
    end = read_json(settings).get("eos_token") if settings.exists() else None
    return Tokenizer.load(path, end_of_text=end["content"] if isinstance(end, dict) else end)


def from_huggingface(folder: str | Path) -> Transformer | EncoderDecoder:
    """Load a folder with ``config.json`` and ``*.safetensors`` (one file or several shards).

    Raises:
        ValueError: an unknown model type, a configuration we cannot express, or tensors that are
            missing, surplus or of another shape (all of them are listed).
    """
    folder = Path(folder)
    published = read_json(folder / "config.json")
    with ExitStack() as open_files:
        shapes, files = {}, {}
        for path in safetensors_files(folder):
            try:
                file = open_files.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{path} cannot be read: {error}") from error
            for name in file.keys():  # noqa: SIM118
                shapes[name] = tuple(file.get_slice(name).get_shape())
                files[name] = file
        return _build(published, Source(shapes, lambda name: files[name].get_tensor(name)))


def from_published(published: dict, tensors: dict[str, Tensor]) -> Transformer | EncoderDecoder:
    """The model that a ``config.json`` and its named tensors describe (float32)."""
    return _build(published, Source(shapes_of(tensors), tensors.__getitem__))


def _build(published: dict, source: Source) -> Transformer | EncoderDecoder:
    name = published.get("model_type")
    if name not in FAMILIES:
        raise ValueError(f"model_type={name!r} is not known; known are {sorted(FAMILIES)}")
    if published.get("quantization_config"):
        raise ValueError("these weights are quantised; only float weights are read, or a GGUF file")
    family = FAMILIES[name]
    config = family.read(Fields(published))
    table = list(family.table(config))
    return _assemble(config, table, _renamed(family, config, table, source))


def _renamed(family: Any, config: Config, table: list[Row], source: Source) -> Source:
    """The source by the names of the table, without what the family does not need."""
    canonical = getattr(family, "canonical", lambda name: name)
    unread = getattr(family, "unread", lambda config: ())(config)
    wanted = {name for row in table for name in row.theirs}
    names = {}
    for name in source.shapes:
        known = name if name in wanted else canonical(name)
        # A tied output may be stored, too; the configuration says that it is the embedding.
        if known in wanted:
            names[known] = name
        elif known is not None and known != "lm_head.weight" and not name.startswith(unread):
            names[name] = name  # surplus, and reported under the name it has in the file
    shapes = {known: source.shapes[name] for known, name in names.items()}
    return Source(shapes, lambda known: source.take(names[known]))


def _assemble(config: Config, table: list[Row], source: Source) -> Transformer | EncoderDecoder:
    """Check all shapes before a single tensor is read, then read them into a model."""
    kind = Transformer if isinstance(config, ModelConfig) else EncoderDecoder
    check_shapes(_published_shapes(config, table), source.shapes)
    weights = {}
    for row in table:
        weights[row.ours] = row.layout.pack([_take_float(source, name) for name in row.theirs])
    return kind.from_weights(config, weights)


def _take_float(source: Source, name: str) -> Tensor:
    tensor = source.take(name)
    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
        raise ValueError(f"{name} is stored as {tensor.dtype}: quantised weights are not read")
    return tensor.float()


def _published_shapes(config: Config, table: list[Row]) -> dict[str, tuple[int, ...]]:
    """What a family's files hold for this configuration, from a model without numbers."""
    with torch.device("meta"):
        model = Transformer(config) if isinstance(config, ModelConfig) else EncoderDecoder(*config)
    return shapes_of(unpack(model, table))


def unpack(model: nn.Module, table: list[Row]) -> dict[str, Tensor]:
    """The tensors of a model as its family publishes them, by name."""
    ours = own_tensors(model)
    assert ours.keys() == {row.ours for row in table}, ours.keys() ^ {row.ours for row in table}
    published = {}
    for row in table:
        parts = row.layout.unpack(ours[row.ours].detach())
        published |= dict(zip(row.theirs, parts, strict=True))
    return published


# Export ---------------------------------------------------------------------------------------


def to_huggingface(
    model: Transformer | EncoderDecoder,
    folder: str | Path,
    family: str,
    tokenizer: Tokenizer | None = None,
    shard_bytes: int = SHARD_BYTES,
    chat_template: str | None = None,
) -> None:
    """Write a folder that `transformers`, vLLM and `from_huggingface` read.

    Args:
        folder: must not exist, or be empty. It appears complete or not at all.
        family: a key of ``FAMILIES``.
        shard_bytes: a file never holds more, unless a single tensor does.
        chat_template: goes with the tokenizer, for programs that chat (`Template.jinja`).

    Raises:
        ValueError: an unknown family, or one that cannot express this model.
    """
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} is not known; known are {sorted(FAMILIES)}")
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; choose a new folder")
    config = model.config
    if isinstance(model, EncoderDecoder):
        config = (model.encoder.config, model.decoder.config)
    fields = published_config(config, family)
    tensors = unpack(model, list(FAMILIES[family].table(config)))
    fields["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        if tokenizer is not None:
            fields |= _write_tokenizer(temporary, tokenizer, chat_template)
        write_json(temporary / "config.json", fields)
        write_shards(temporary, tensors, shard_bytes)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, chat_template: str | None) -> dict:
    """Write the tokenizer, and say in both files which token ends a text; → for ``config.json``."""
    tokenizer.save(folder / "tokenizer.json")
    settings, fields = {"tokenizer_class": "PreTrainedTokenizerFast"}, {}
    with suppress(ValueError):  # a tokenizer may have no such token
        fields["eos_token_id"] = tokenizer.end_of_text
        settings["eos_token"] = tokenizer.token_bytes(tokenizer.end_of_text).decode()
    if chat_template is not None:
        settings["chat_template"] = chat_template
    write_json(folder / "tokenizer_config.json", settings)
    return fields


def published_config(config: Config, family: str) -> dict:
    """The ``config.json`` of a model in the words of a family.

    Raises:
        ValueError: reading it back would give another model; the fields that differ are named.
    """
    module = FAMILIES[family]
    # The defaults of a family's own models may lie outside this vocabulary.
    no_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    fields = {"model_type": family, **no_ids, **module.write(config)}
    back = module.read(Fields(fields))
    both = [config, back] if isinstance(config, tuple) else [(config,), (back,)]
    lost = [
        f"{name}={value!r} would come back as {other.to_dict()[name]!r}"
        for ours, other in zip(*both, strict=True)
        for name, value in ours.to_dict().items()
        if not _same(value, other.to_dict()[name])
    ]
    if lost:
        raise ValueError(f"the family {family!r} cannot express this model: {'; '.join(lost)}")
    return fields


def _same(a: Any, b: Any) -> bool:
    """Equal, with room for the rounding of derived constants."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=1e-12)
    return a == b


# GGUF -----------------------------------------------------------------------------------------


def from_gguf(file: GGUF) -> Transformer:
    """Build the model of a Llama-family GGUF file, dequantised to float32.

    Raises:
        ValueError: another architecture, or a damaged file.
    """
    config = gguf_config(file)
    table = list(FAMILIES["llama"].table(config))
    names = {gguf_name(name): name for row in table for name in row.theirs}
    shapes = {names.get(name, name): file.shape(name) for name in file.names}
    n_rows = {"q": config.n_heads, "k": config.n_kv_heads}

    def take(published: str) -> Tensor:
        name = gguf_name(published)
        weight = file.tensor(name)
        for part, n_heads in n_rows.items():
            if name.endswith(f"attn_{part}.weight"):
                weight = half_split(weight, n_heads)
        return weight

    return _assemble(config, table, Source(shapes, take))


def smollm2() -> tuple[Transformer, Tokenizer]:
    """SmolLM2-135M-Instruct (Allal et al. 2025): real weights in our Transformer, its tokenizer.

    Returns:
        The model in float32 (538 MB) and its tokenizer; the end of a turn is ``<|im_end|>``.
    """
    file = GGUF(assets.path("smollm2"))
    return from_gguf(file), Tokenizer.from_gguf(file.metadata)
