"""Fine-tune a chat model on your own conversations, on a laptop.

    python -m minillm.finetune smollm2 chats.jsonl my-adapters
    python -m minillm.finetune smollm2 chats.jsonl my-adapters --four-bit --gguf mine.gguf
    python -m minillm.chat smollm2 --adapters my-adapters
    python -m minillm.chat mine.gguf

Each line of the file is one conversation:
{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
"""

import argparse
import sys
from pathlib import Path

import torch

import minillm
from minillm.adapt.finetune import EVERYWHERE, finetune
from minillm.adapt.gguf_files import save_gguf
from minillm.adapt.lora_files import save_adapters
from minillm.adapt.quant_model import dequantize_linears, packed_smollm2
from minillm.adapt.sft import read_chats
from minillm.adapt.wrap import merge, remove_adapters
from minillm.data.assets import AssetError
from minillm.infer.chat import Chat
from minillm.infer.sampling import Sampler
from minillm.model import hf
from minillm.model.transformer import Transformer
from minillm.train.recompute import checkpoint_blocks


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 with one line on stderr."""
    given = parser().parse_args(arguments)
    try:
        run(given)
        return 0
    except (ValueError, OSError, AssetError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m minillm.finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("model", metavar="MODEL", help='"smollm2", a folder, or a name on the hub')
    p.add_argument("chats", metavar="CHATS.jsonl", type=Path)
    p.add_argument("adapters", metavar="FOLDER", type=Path, help="where the adapters go")
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--batch-size", type=int, default=4)
    p.add_argument("--lr", type=float, default=1e-3, help="highest learning rate (default: 0.001)")
    p.add_argument("--max-tokens", type=int, default=512, help="where conversations are cut")
    p.add_argument("--ask", help="compare answers to this (default: the file's first question)")
    p.add_argument("--four-bit", action="store_true", help="QLoRA: keep smollm2 in 4 bits")
    p.add_argument(
        "--save-memory", action="store_true", help="recompute activations: slower, for long texts"
    )
    p.add_argument("--export", type=Path, help="also write the merged model, as a folder")
    p.add_argument("--gguf", type=Path, help="also write it in 8 bits, as one file for llama.cpp")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    return p


def run(given: argparse.Namespace) -> None:
    """Check what is cheap, load, answer, train, answer again, save."""
    chats = read_chats(given.chats)
    if given.four_bit and given.model != "smollm2":
        raise ValueError("--four-bit is for smollm2, which is published in 4 bits")
    for folder in (given.adapters, given.export):
        if folder is not None and folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty; choose a new folder")
    if given.gguf and (given.gguf.exists() or not given.gguf.parent.is_dir()):
        raise ValueError(f"{given.gguf} exists, or its folder does not; choose another name")
    device = minillm.device(given.device)
    model, tokenizer = packed_smollm2() if given.four_bit else hf.from_pretrained(given.model)
    family = hf.family_of(given.model)
    if given.gguf and family != "llama":
        raise ValueError(f"--gguf is for the Llama family, and {given.model} is a {family}")
    model.to(device)
    if given.save_memory:
        checkpoint_blocks(model)
    first = next((text for role, text in chats[0] if role == "user"), "Hello")
    question = given.ask or first
    print(f"{len(chats)} conversations\nyou> {question}")
    print(f"before> {answer(model, tokenizer, question)}", flush=True)
    history = finetune(
        model,
        tokenizer,
        chats,
        steps=given.steps,
        batch_size=given.batch_size,
        lr=given.lr,
        max_tokens=given.max_tokens,
        generator=torch.Generator().manual_seed(given.seed),
    )
    print(f"after> {answer(model, tokenizer, question)}")
    print(f"loss {history.losses[0]:.3f} → {history.losses[-1]:.3f} in {history.seconds:.0f} s")
    save_adapters(model, given.adapters, family, EVERYWHERE)
    print(f"saved: python -m minillm.chat {given.model} --adapters {given.adapters}")
    if given.export or given.gguf:
        merge_for_good(model)
    if given.export:
        hf.to_huggingface(model, given.export, family, tokenizer)
        print(f"merged: python -m minillm.chat {given.export}")
    if given.gguf:
        save_gguf(model, given.gguf, tokenizer)
        print(f"8 bits: python -m minillm.chat {given.gguf}")


def merge_for_good(model: Transformer) -> None:
    """The plain float32 model that computes the same, in place."""
    dequantize_linears(model)
    merge(model)
    remove_adapters(model)


def answer(model, tokenizer, question: str) -> str:
    """The likeliest answer, at most 60 tokens."""
    model.eval()
    chat = Chat(model, tokenizer, sampler=Sampler(temperature=0), max_new_tokens=60)
    return "".join(chat.say(question)).strip()


if __name__ == "__main__":
    sys.exit(main())
