"""The small checkpoints that lessons start from, and how each was made.

    python -m minillm.train.recipes stories

trains a checkpoint anew and replaces the one shipped in `minillm/checkpoints/`: NAME.safetensors
with the weights in float16, and NAME.json with what was measured. Minutes on one CPU core.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from minillm.data import instructions, request_texts, stories
from minillm.data.packing import Batch, one_a_row
from minillm.data.word_tokenizer import WordTokenizer
from minillm.model.config import gpt2_config, llama_config
from minillm.model.transformer import Transformer
from minillm.train.loop import History, evaluate, train

FOLDER = Path(__file__).parent.parent / "checkpoints"


def load(name: str, device: str | torch.device = "cpu") -> tuple[Transformer, dict]:
    """A shipped model in float32, and its record: loss, entropy floor, tokens seen, seconds.

    Raises:
        ValueError: there is no recipe of this name.
    """
    if name not in RECIPES:
        raise ValueError(f"name={name!r}: expected one of {', '.join(RECIPES)}")
    model = Transformer.load(FOLDER / f"{name}.safetensors", device=device)
    return model, json.loads((FOLDER / f"{name}.json").read_text())


def score_stories(model: Transformer, record: dict) -> float:
    """Mean loss in nats per token on the held-out stories that the record names."""
    test = stories.dataset(**record["data"])["test"]
    return evaluate(model, stories.batches(test["text"], batch_size=100))


def make_stories(seed: int = 0) -> tuple[Transformer, dict]:
    """Three layers of width 128 on 36,000 different stories, none of them seen twice."""
    steps, batch_size = 1500, 24
    sizes = {"n_train": steps * batch_size, "n_validation": 0, "n_test": 500, "seed": seed}
    data = stories.dataset(**sizes)
    generator = torch.Generator().manual_seed(seed)
    config = gpt2_config(
        len(stories.vocabulary()), d_model=128, n_layers=3, n_heads=4, max_length=128
    )
    model = Transformer(config, generator=generator)
    batches = stories.batches(data["train"]["text"], batch_size, generator)
    history = train(model, batches, steps=steps, lr=5e-3)
    test = data["test"]
    return model, _record(sizes, history, sum(test["nats"]) / sum(test["n_tokens"]))


def instruction_documents(n: int, batch_size: int, seed: int) -> Iterator[Batch]:
    """Batches of the documents about single steps, in the tokens of `WordTokenizer`."""
    tokenizer, generator = WordTokenizer(), torch.Generator().manual_seed(seed)
    for _ in range(0, n, batch_size):
        texts = instructions.documents(batch_size, generator)
        yield one_a_row([tokenizer.encode(text) for text in texts], tokenizer.end_of_text)


def score_instructions(model: Transformer, record: dict) -> float:
    """Mean loss in nats per token on the held-out documents that the record names."""
    test = record["data"]["test"]
    return evaluate(model, instruction_documents(test["n"], test["n"], test["seed"]))


def make_instructions(seed: int = 0) -> tuple[Transformer, dict]:
    """Four layers of width 96 on plain text about steps that turn a list of words into another."""
    steps, batch_size, n_test = 1800, 32, 400
    data = {
        "train": {"n": steps * batch_size, "seed": seed},
        "test": {"n": n_test, "seed": seed + 1},
    }
    config = llama_config(
        WordTokenizer().vocab_size, d_model=96, n_layers=4, n_heads=4, max_length=128
    )
    model = Transformer(config, generator=torch.Generator().manual_seed(seed))
    batches = instruction_documents(data["train"]["n"], batch_size, seed)
    history = train(model, batches, steps=steps, lr=5e-3)
    texts = instructions.documents(n_test, torch.Generator().manual_seed(seed + 1))
    n_tokens = sum(len(WordTokenizer().encode(text)) + 1 for text in texts)  # and the end
    return model, _record(data, history, sum(map(instructions.nats, texts)) / n_tokens)


def score_assistant(model: Transformer, record: dict) -> float:
    """Mean loss in nats per token on the held-out documents that the record names."""
    test = record["data"]["test"]
    generator = torch.Generator().manual_seed(test["seed"])
    return evaluate(model, request_texts.batches(test["n"], 100, generator))


def make_assistant(seed: int = 0) -> tuple[Transformer, dict]:
    """Three layers of width 64 that help everybody, and have read how answers are judged."""
    steps, batch_size, n_test = 1100, 32, 400
    data = {
        "train": {"n": steps * batch_size, "seed": seed},
        "test": {"n": n_test, "seed": seed + 1},
    }
    config = llama_config(
        len(request_texts.vocabulary()), d_model=64, n_layers=3, n_heads=4, max_length=128
    )
    model = Transformer(config, generator=torch.Generator().manual_seed(seed))
    batches = request_texts.batches(
        data["train"]["n"], batch_size, torch.Generator().manual_seed(seed)
    )
    history = train(model, batches, steps=steps, lr=6e-3)
    documents = request_texts.documents(n_test, torch.Generator().manual_seed(seed + 1))
    n_tokens = sum(len(request_texts.encode(document.text)) + 1 for document in documents)
    return model, _record(data, history, sum(document.nats for document in documents) / n_tokens)


def _record(data: dict, history: History, floor: float) -> dict:
    """What is written beside the weights: `data` says which text, `floor` is its entropy."""
    return {
        "data": data,
        "steps": len(history.steps),
        "tokens": history.n_tokens,
        "seconds": round(history.seconds),
        "floor": floor,
    }


# name -> (how to train it, how to score it)
RECIPES: dict[str, tuple[Callable, Callable]] = {
    "stories": (make_stories, score_stories),
    "instructions": (make_instructions, score_instructions),
    "assistant": (make_assistant, score_assistant),
}


def make(name: str, folder: Path = FOLDER) -> dict:
    """Train one checkpoint, write it to `folder`, and return its record."""
    make_model, score = RECIPES[name]
    model, record = make_model()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    model.half().save(path)
    # Scored as shipped: after rounding to float16, read back from the file.
    record["loss"] = score(Transformer.load(path), record)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def main(arguments: list[str] | None = None) -> int:
    """Command line: train the named checkpoints."""
    parser = argparse.ArgumentParser(prog="python -m minillm.train.recipes", description=__doc__)
    parser.add_argument("names", nargs="+", choices=RECIPES, help="checkpoints to train")
    for name in parser.parse_args(arguments).names:
        record = make(name)
        print(f"{name}: loss {record['loss']:.4f}, floor {record['floor']:.4f} nats per token")
    return 0


if __name__ == "__main__":
    sys.exit(main())
