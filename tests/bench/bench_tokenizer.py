"""Tokenizer speed beside the libraries written in Rust, in one run. Medians of 5."""

import resource
import sys
import tempfile
import time
from pathlib import Path

import tiktoken
import tokenizers
from tokenizers import Regex, models, pre_tokenizers, trainers
from turns import in_turns

from minillm.data import corpora
from minillm.data.bpe import GPT4_PATTERN, train_bpe
from minillm.data.tokenizer import Tokenizer


def medians(**runs) -> list[float]:
    seconds, _ = in_turns(runs, rounds=5)
    return list(seconds.values())


def train_outside(texts: list[str], vocab_size: int) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT4_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)


def peak_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main() -> None:
    texts = [text for split in corpora.wikipedia().values() for text in split["text"]]
    n_bytes = sum(len(text.encode()) for text in texts)

    ours, theirs = medians(
        ours=lambda: train_bpe(texts, 4096), theirs=lambda: train_outside(texts, 4096)
    )
    print(
        f"train 4,096 on {n_bytes / 1e6:.1f} MB   ours {ours:.2f} s   tokenizers {theirs:.2f} s"
        f"   {ours / theirs:.2f}x its time (bar: at most 5)"
    )
    small = "\n".join(texts)[:130_000]
    (seconds,) = medians(ours=lambda: train_bpe([small], 500))
    print(f"train 500 on 130 KB       ours {seconds:.2f} s   (bar: at most 0.4)")

    tokenizer = Tokenizer.train(texts, 4096)
    reference = tiktoken.Encoding(
        "reference", pat_str=GPT4_PATTERN, mergeable_ranks=tokenizer.tokens, special_tokens={}
    )
    ours, theirs = medians(
        ours=lambda: [tokenizer.encode(text) for text in texts],
        theirs=lambda: [reference.encode_ordinary(text) for text in texts],
    )
    print(
        f"encode {n_bytes / 1e6:.1f} MB            ours {n_bytes / ours / 1e6:.1f} MB/s   "
        f"tiktoken {n_bytes / theirs / 1e6:.1f} MB/s   {theirs / ours:.2f}x its speed "
        "(bar: at least 0.9)"
    )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "50MB.txt"
        with path.open("w", encoding="utf-8") as file:
            while file.tell() < 50_000_000:
                file.writelines(text + "\n" for text in texts)
        stream(tokenizer, path, 2_000)  # warm up: buffers and caches reach their size
        before, start = peak_mb(), time.perf_counter()
        n_tokens = stream(tokenizer, path)
        seconds = time.perf_counter() - start
        print(
            f"encode_iterable on {path.stat().st_size / 1e6:.0f} MB   {n_tokens:,} tokens in "
            f"{seconds:.0f} s   peak memory grew {peak_mb() - before:.2f} MB (bar: below 1)"
        )


def stream(tokenizer: Tokenizer, path: Path, n_lines: int | None = None) -> int:
    with path.open(encoding="utf-8") as file:
        lines = file if n_lines is None else (file.readline() for _ in range(n_lines))
        return sum(1 for _ in tokenizer.encode_iterable(lines))


if __name__ == "__main__":
    main()
