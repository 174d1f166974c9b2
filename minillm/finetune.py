"""Fine-tune a chat model on your own conversations, on a laptop.

    python -m minillm.finetune smollm2 chats.jsonl my-adapters
    python -m minillm.finetune smollm2 chats.jsonl my-adapters --four-bit --gguf mine.gguf
    python -m minillm.chat smollm2 --adapters my-adapters
    python -m minillm.chat mine.gguf

Each line of the file is one conversation:
{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

import minillm
from minillm import command
from minillm.adapt.finetune import EVERYWHERE, finetune
from minillm.adapt.gguf_files import save_gguf
from minillm.adapt.lora_files import published_targets, save_adapters
from minillm.adapt.quant_model import dequantize_linears, packed_smollm2
from minillm.adapt.sft import read_chats
from minillm.adapt.wrap import merge, remove_adapters
from minillm.infer.chat import Chat, find_template
from minillm.infer.sampling import Sampler
from minillm.model import hf
from minillm.model.transformer import Transformer
from minillm.train.recompute import checkpoint_blocks

BETWEEN_ANSWERS = 20  # seconds, while it learns


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return command.run(finetune_files, _parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = command.make_parser("minillm.finetune", __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help='"smollm2", a folder, or a name on the hub')
    add("chats", metavar="CHATS.jsonl", type=Path, help="the conversations")
    add("adapters", metavar="FOLDER", type=Path, help="where the adapters go; new or empty")
    add("--steps", type=int, default=60, help="updates of the adapters (60)")
    add("--batch-size", type=int, default=4, help="conversations an update (4)")
    add("--lr", type=float, default=1e-3, help="highest learning rate (0.001)")
    add("--max-tokens", type=int, default=512, help="where conversations are cut (512)")
    add("--ask", help="compare answers to this (the file's first question)")
    add("--four-bit", action="store_true", help="QLoRA: keep smollm2 in 4 bits")
    add("--save-memory", action="store_true", help="recompute activations: slower, for long texts")
    add("--export", type=Path, help="also write the merged model, as a folder")
    add("--gguf", type=Path, help="also write it in 8 bits, as one file for llama.cpp")
    add("--seed", type=int, default=0, help="repeats a run (0)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (auto)")
    return parser


def finetune_files(given: argparse.Namespace) -> None:
    """Check what is cheap, load, answer, train, answer again, save."""
    chats = read_chats(given.chats)
    if given.four_bit and given.model != "smollm2":
        raise ValueError("--four-bit is for smollm2, which is published in 4 bits")
    check_places(given)
    device = minillm.device(given.device)
    model, tokenizer = packed_smollm2() if given.four_bit else hf.from_pretrained(given.model)
    family = hf.family_of(given.model)
    if given.gguf and family != "llama":
        raise ValueError(f"--gguf is for the Llama family, and {given.model} is a {family}")
    # Only what the family has names for can be saved afterwards.
    lora = replace(EVERYWHERE, targets=published_targets(model, family))
    model.to(device)
    if given.save_memory:
        checkpoint_blocks(model)
    first = next((text for role, text in chats[0] if role == "user"), "Hello")
    question = given.ask or first[: min(300, model.config.max_length // 4)]
    print(f"{len(chats)} conversations\nyou> {question}")
    print(f"before> {answer(model, tokenizer, question)}", flush=True)
    started = shown = time.monotonic()

    def show_answer(model: Transformer) -> float:
        """Now and then, how the answer changes; the number is for the loop, which keeps one."""
        nonlocal shown
        if time.monotonic() - shown > BETWEEN_ANSWERS:
            now = answer(model, tokenizer, question)
            shown = time.monotonic()
            tqdm.write(f"after {shown - started:.0f} s> {now}")
        return 0.0

    history = finetune(
        model,
        tokenizer,
        chats,
        lora=lora,
        steps=given.steps,
        batch_size=given.batch_size,
        lr=given.lr,
        max_tokens=given.max_tokens,
        generator=torch.Generator().manual_seed(given.seed),
        evaluate=show_answer,
        evaluate_every=1,
    )
    print(f"after> {answer(model, tokenizer, question)}")
    print(f"loss {history.losses[0]:.3f} → {history.losses[-1]:.3f} in {history.seconds:.0f} s")
    save_adapters(model, given.adapters, family, lora)
    print(f"saved: python -m minillm.chat {given.model} --adapters {given.adapters}")
    if given.export or given.gguf:
        merge_for_good(model)
    template = find_template(tokenizer).jinja()
    if given.export:
        hf.to_huggingface(model, given.export, family, tokenizer, chat_template=template)
        print(f"merged: python -m minillm.chat {given.export}")
    if given.gguf:
        save_gguf(model, given.gguf, tokenizer, chat_template=template)
        print(f"8 bits: python -m minillm.chat {given.gguf}")


def check_places(given: argparse.Namespace) -> None:
    """Refuse, before anything is learned, what could not be written afterwards."""
    folders = [folder for folder in (given.adapters, given.export) if folder is not None]
    for folder in folders:
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty; choose a new folder")
        above = next(parent for parent in folder.absolute().parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise ValueError(f"{folder} cannot be made: {above} is no folder to write into")
    if len({folder.absolute() for folder in folders}) < len(folders):
        raise ValueError(f"{given.export} is to hold the adapters; choose another for --export")
    if given.gguf and (given.gguf.exists() or not given.gguf.parent.is_dir()):
        raise ValueError(f"{given.gguf} exists, or its folder does not; choose another name")


def merge_for_good(model: Transformer) -> None:
    """The plain float32 model that computes the same, in place."""
    dequantize_linears(model)
    merge(model)
    remove_adapters(model)


def answer(model, tokenizer, question: str) -> str:
    """The likeliest answer, at most 60 tokens."""
    n = min(60, model.config.max_length // 2)
    was_training = model.training
    model.eval()
    chat = Chat(model, tokenizer, sampler=Sampler(temperature=0), max_new_tokens=n)
    said = "".join(chat.say(question)).strip()
    model.train(was_training)
    return said


if __name__ == "__main__":
    sys.exit(main())
