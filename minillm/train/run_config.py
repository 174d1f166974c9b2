"""What a training run is, as a TOML file: read once, checked once, the same for every machine.

Nothing in it says how many processes train. That is the launcher's business, and the numbers of
the run do not depend on it.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import IterableDataset, load_dataset

from minillm.data import stories
from minillm.data.streaming import streamed_stories
from minillm.data.tokenizer import Tokenizer
from minillm.model.config import ModelConfig, gpt2_config, llama_config
from minillm.train.layout import Layout
from minillm.train.muon import muon
from minillm.train.optim import adamw
from minillm.train.spikes import SpikeGuard

FAMILIES = {"llama": llama_config, "gpt2": gpt2_config}
OPTIMIZERS = {"adamw": adamw, "muon": muon}


@dataclass(frozen=True)
class Text:
    """A tokenizer as a run needs it."""

    encode: Callable[[str], list[int]]
    vocab_size: int
    end_token: int


@dataclass(frozen=True)
class Data:
    """Table [data]: where text comes from and how it is cut.

    Attributes:
        load: what `datasets.load_dataset` is to be called with, as path = "json",
            data_files = "texts/*.jsonl", split = "train". Or else
        stories: n and seed of generated stories, which need no files.
        tokenizer: "bytes", "stories", or the path of a `tokenizer.json`.
        block_size, batch_size, streams, window, column, mask_documents: see `StreamedBatches`. The
            batch is that of all processes together; `streams` is the most that can share it.
    """

    block_size: int
    batch_size: int
    load: dict | None = None
    stories: dict | None = None
    tokenizer: str = "bytes"
    streams: int = 4
    window: int = 1000
    column: str = "text"
    mask_documents: bool = False

    def __post_init__(self):
        _one_source(self)

    def text(self) -> Text:
        """Raises ValueError where a file is no tokenizer."""
        if self.tokenizer == "stories":
            return Text(stories.encode, len(stories.vocabulary()), stories.END)
        if self.tokenizer == "bytes":
            tokenizer = Tokenizer.train([], 257, name="bytes")  # 256 bytes, end of text, no merges
        else:
            tokenizer = Tokenizer.load(self.tokenizer)
        return Text(tokenizer.encode, tokenizer.vocab_size, tokenizer.end_of_text)


@dataclass(frozen=True)
class Validation:
    """Table [validation]: `batches` of other text, scored after every `every` steps."""

    batches: int
    every: int
    load: dict | None = None
    stories: dict | None = None

    def __post_init__(self):
        _one_source(self)


@dataclass(frozen=True)
class Training:
    """Table [train]: the arguments of `loop.train`, by name.

    Attributes:
        optimizer: "adamw" or "muon".
        balance: by how much a step moves the biases of a mixture's routers, as 0.001; needs
            `moe.balance_bias`.
        guard: leave out gradient spikes (`SpikeGuard`).
        recompute: keep only each block's input for the backward pass (`checkpoint_blocks`).
        compile: let PyTorch compile the blocks; needs a C++ compiler.
    """

    steps: int
    lr: float
    warmup_steps: int | None = None
    weight_decay: float = 0.1
    accumulate: int = 1
    clip: float = 1.0
    optimizer: str = "adamw"
    balance: float = 0.0
    precision: str = "fp32"
    guard: bool = False
    recompute: bool = False
    compile: bool = False
    checkpoint_every: int = 100

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r}: expected one of {list(OPTIMIZERS)}")

    def arguments(self) -> dict[str, Any]:
        """For `loop.train`."""
        names = ("steps", "lr", "warmup_steps", "weight_decay", "accumulate", "clip", "precision")
        return {name: getattr(self, name) for name in (*names, "checkpoint_every")} | {
            "optimizer": OPTIMIZERS[self.optimizer],
            "guard": SpikeGuard() if self.guard else None,
        }


@dataclass(frozen=True)
class Parallel:
    """Table [parallel]: how processes share the work, whatever their number.

    Attributes:
        data, shard, tensor, pipeline, expert: as in `Layout`.
        rest: which of them takes the processes that are left, "shard" or "data". With copies,
            PyTorch adds gradients up in another order in the first step after a restart, and the
            last bits of the curve may differ; with shards none do.
    """

    data: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    rest: str = "shard"

    def layout(self, n_processes: int) -> Layout:
        """Raises ValueError where the number of processes does not fit."""
        if self.rest not in ("data", "shard"):
            raise ValueError(f"rest={self.rest!r}: expected 'data' or 'shard'")
        sizes = dataclasses.asdict(self)
        del sizes["rest"]
        fixed = Layout(**sizes).n_processes
        if n_processes % fixed:
            raise ValueError(
                f"{n_processes} processes, and [parallel] multiplies to {fixed}: expected a "
                "multiple of it; start others, or change the table"
            )
        return Layout(**{**sizes, self.rest: sizes[self.rest] * n_processes // fixed})


@dataclass(frozen=True)
class RunConfig:
    """A run: `folder` for what it writes, and a table for each of its parts.

    Attributes:
        model: `family` "llama" or "gpt2", and fields of `ModelConfig`; the vocabulary's size is the
            tokenizer's.
        seed: of the initial weights and the order of the text.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
    """

    folder: Path
    model: dict
    data: Data
    train: Training
    parallel: Parallel = Parallel()
    validation: Validation | None = None
    seed: int = 0
    device: str = "auto"

    def model_config(self) -> ModelConfig:
        """Raises ValueError for an unknown family, or fields that contradict each other."""
        fields = dict(self.model)
        family = fields.pop("family", "llama")
        if family not in FAMILIES:
            raise ValueError(f"family={family!r}: expected one of {list(FAMILIES)}")
        base = FAMILIES[family](self.data.text().vocab_size).to_dict()
        # What follows from other fields is worked out anew.
        follows = ("n_kv_heads", "head_dim", "d_ff", "qkv_bias", "norm_bias")
        config = ModelConfig.from_dict({**base, **dict.fromkeys(follows), **fields})
        if self.train.balance and not (config.moe and config.moe.balance_bias):
            raise ValueError(
                f"balance={self.train.balance} moves the biases of routers, and this model has "
                "none: add moe = {balance_bias = true, …} to [model]"
            )
        return config


def read_config(path: str | Path, changes: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file; `changes` such as "train.steps=50" replace what it says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no TOML, or a table has a name too many, one too few, or a wrong value.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        for change in changes:
            _merge(tables, tomllib.loads(change))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} and changes {list(changes)}: no valid TOML: {error}") from error
    parts = {"data": Data, "train": Training, "parallel": Parallel, "validation": Validation}
    for name, part in parts.items():
        if name in tables:
            tables[name] = _build(part, tables[name], f"[{name}]")
    if "folder" in tables:
        tables["folder"] = Path(tables["folder"])
    return _build(RunConfig, tables, str(path))


def open_text(source: Data | Validation) -> IterableDataset:
    """The documents, read as they are needed."""
    if source.stories is not None:
        return streamed_stories(**source.stories)
    return load_dataset(**source.load, streaming=True)


def _one_source(source: Data | Validation) -> None:
    if (source.load is None) == (source.stories is None):
        raise ValueError("expected either load or stories, to say where text comes from")


def _merge(tables: dict, changes: dict) -> None:
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(tables.get(name), dict):
            _merge(tables[name], value)
        else:
            tables[name] = value


def _build(part: type, table: dict, where: str) -> Any:
    fields = dataclasses.fields(part)
    if unknown := table.keys() - {field.name for field in fields}:
        raise ValueError(f"{where} has no {sorted(unknown)}: known are {[f.name for f in fields]}")
    needed = {f.name for f in fields if f.default is dataclasses.MISSING}
    if missing := needed - table.keys():
        raise ValueError(f"{where} lacks {sorted(missing)}")
    return part(**table)
