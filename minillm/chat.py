"""Talk to a model in the terminal.

    python -m minillm.chat smollm2
    python -m minillm.chat path/to/folder --temperature 0.8 --system "Answer in one sentence."
    echo "What is the capital of France?" | python -m minillm.chat smollm2 --temperature 0

MODEL is "smollm2", a folder in Hugging Face's layout, a .gguf file, or a name on the hub.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator

import torch

import minillm
from minillm import command
from minillm.adapt.lora_files import load_adapters
from minillm.adapt.quant_cache import Int8Cache
from minillm.adapt.wrap import merge
from minillm.infer.chat import PLAIN, SMOLLM2_SYSTEM, Chat
from minillm.infer.sampling import Sampler
from minillm.model import hf
from minillm.model.cache import KVCache

HELP = "/reset forgets the conversation, /quit leaves; Ctrl-C stops an answer."


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return command.run(talk, _parser().parse_args(arguments))


def talk(given: argparse.Namespace) -> None:
    """Load the model and answer until the input ends."""
    chat = _start(given)
    with contextlib.suppress(BrokenPipeError):  # `| head` has seen enough
        _converse(chat)
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = command.make_parser("minillm.chat", __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="see above")
    add("--temperature", type=float, default=0.2, help="0 always takes the likeliest (0.2)")
    add("--top-p", type=float, default=0.9, help="cut the unlikely rest (0.9)")
    add("--max-new-tokens", type=int, help="longest answer (256)")
    add("--context", type=int, help="tokens remembered (the model's, at most 2048)")
    add("--int8-cache", action="store_true", help="remember in 8 bits: a quarter of the memory")
    add("--system", help="instructions that stand before the conversation")
    add("--seed", type=int, help="repeats a conversation (another each time)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (auto)")
    add("--adapters", help="a folder that python -m minillm.finetune wrote")
    return parser


def _start(given: argparse.Namespace) -> Chat:
    """Check what was asked for, cheap things first, and load the model."""
    sampler = Sampler(temperature=given.temperature, top_p=given.top_p)
    device = minillm.device(given.device)
    generator = torch.Generator()
    if given.seed is None:
        generator.seed()
    else:
        generator.manual_seed(given.seed)
    model, tokenizer = hf.from_pretrained(given.model)
    if given.adapters:
        load_adapters(model, given.adapters, hf.family_of(given.model))
        merge(model)
    system = given.system
    # Adapters have learned conversations as they stand in a file, without these.
    if system is None and given.model == "smollm2" and not given.adapters:
        system = SMOLLM2_SYSTEM
    return Chat(
        model.to(device),
        tokenizer,
        system=system,
        sampler=sampler,
        generator=generator,
        max_new_tokens=given.max_new_tokens,
        context=given.context,
        cache_type=Int8Cache if given.int8_cache else KVCache,
    )


def _converse(chat: Chat) -> None:
    """Answer line after line until the input ends. Notes go to stderr, answers to stdout."""
    if chat.template is PLAIN:
        _note("no chat template known for this model: it continues your text as plain text")
    for message in _messages():
        if message == "/reset":
            chat.reset()
            _note("forgotten")
        elif message.startswith("/"):
            _note(HELP)
        else:
            _answer(chat, message)


def _messages() -> Iterator[str]:
    """The lines that are typed or piped in, without empty ones, up to the end or /quit."""
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  arrow keys and history in `input`
        _note(HELP)
    while True:
        try:
            line = input("you> " if typed else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not typed:
                raise
            _note("\n/quit leaves")
            continue
        if line == "/quit":
            return
        if line:
            yield line


def _answer(chat: Chat, message: str) -> None:
    """Print the answer as it comes; Ctrl-C ends it and keeps what was said."""
    try:
        with contextlib.closing(chat.say(message)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    except ValueError as error:  # a message that is too long; the conversation goes on
        _note(f"not sent: {error}")
        return
    print(flush=True)
    if chat.forgotten:
        _note(f"the context is full: forgot the {chat.forgotten} oldest questions and answers")
    if chat.ending == "length":
        _note(f"stopped after {chat.max_new_tokens} tokens; --max-new-tokens allows more")


def _note(text: str) -> None:
    print(f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
