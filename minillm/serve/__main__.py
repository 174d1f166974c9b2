"""Serve a model to every program that speaks OpenAI's protocol.

    python -m minillm.serve smollm2
    python -m minillm.serve path/to/folder --port 9000 --token-file secret.txt

    from openai import OpenAI
    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="any")
    client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "Hi"}])

MODEL is "smollm2", a folder in Hugging Face's layout, a .gguf file, or a name on the hub.
Requests share one batch; those that find no room wait, and when too many wait the server says so
(status 429). Prompts are read one at a time, each in one pass; the others wait for its length.
Ctrl-C ends it.
"""

import argparse
import ipaddress
import os
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

import minillm
from minillm import command
from minillm.data.tokenizer import Tokenizer
from minillm.infer.chat import SMOLLM2_SYSTEM, find_template
from minillm.infer.scheduler import Scheduler
from minillm.model import hf
from minillm.model.transformer import Transformer
from minillm.serve.app import make_app
from minillm.serve.reading import Reader
from minillm.serve.worker import Worker

BLOCK_SIZE = 16  # tokens


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return command.run(serve, _parser().parse_args(arguments))


def serve(given: argparse.Namespace) -> None:
    """Load the model and answer requests until Ctrl-C."""
    token = _token(given)
    device = minillm.device(given.device)
    model, tokenizer = hf.from_pretrained(given.model)
    system = given.system
    if system is None and given.model == "smollm2":
        system = SMOLLM2_SYSTEM
    reader, scheduler = make_engine(
        model.to(device),
        tokenizer,
        system=system,
        context=given.context,
        max_new_tokens=given.max_new_tokens,
        max_batch=given.max_batch,
        max_waiting=given.max_waiting,
    )
    worker = Worker(scheduler)
    try:
        name = Path(given.model).name
        # Connections beyond those that compute or wait are turned away before they cost anything.
        n_connections = 2 * (given.max_batch + given.max_waiting) + 16
        run(make_app(worker, reader, name, token=token), given.host, given.port, n_connections)
    finally:
        worker.close()


def make_engine(
    model: Transformer,
    tokenizer: Tokenizer,
    *,
    system: str | None = None,
    context: int | None = None,
    max_new_tokens: int = 512,
    max_batch: int = 8,
    max_waiting: int = 64,
) -> tuple[Reader, Scheduler]:
    """What reads requests for a model, and what computes them.

    Args:
        system: instructions for conversations that bring none.
        context: the most tokens of prompt and answer; None is the model's, at most 2,048.
        max_new_tokens: the most tokens of an answer, and how many when nothing is asked for.
        max_batch: requests computed at once; memory for so many full contexts is taken.
        max_waiting: requests that may wait.

    Raises:
        ValueError: a number is out of range.
    """
    longest = model.config.max_length
    context = min(longest, 2048) if context is None else context
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: expected at least 1")
    if not 2 <= context <= longest:
        raise ValueError(f"context={context}: expected between 2 and {longest}, the model's own")
    template = find_template(tokenizer)
    stop_tokens = {tokenizer.special_tokens[template.end]} if template.end else set()
    stop_tokens |= {tokenizer.end_of_text}
    reader = Reader(tokenizer, template, tuple(stop_tokens), context, max_new_tokens, system)
    n_blocks = max_batch * -(-context // BLOCK_SIZE)
    scheduler = Scheduler(
        model,
        n_blocks=n_blocks,
        block_size=BLOCK_SIZE,
        max_batch=max_batch,
        max_waiting=max_waiting,
    )
    return reader, scheduler


def run(app: Starlette, host: str, port: int, n_connections: int) -> None:
    """Serve until Ctrl-C."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        limit_concurrency=n_connections,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        log_level="info",
    )


def _token(given: argparse.Namespace) -> str | None:
    """What clients must send. Beyond this machine nobody is served without one."""
    token = os.environ.get("MINILLM_TOKEN")
    if given.token_file:
        token = Path(given.token_file).read_text("utf-8").strip()
        if not token:
            raise ValueError(f"{given.token_file} is empty: put a token into it")
    if not token and not _is_local(given.host):
        raise ValueError(
            f"--host {given.host} lets other machines in: set MINILLM_TOKEN or --token-file, and "
            "give clients the token, or stay on 127.0.0.1"
        )
    return token or None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parser() -> argparse.ArgumentParser:
    parser = command.make_parser("minillm.serve", __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="see above")
    add("--host", default="127.0.0.1", help="who may connect (127.0.0.1: only this machine)")
    add("--port", type=int, default=8000, help="where clients connect (8000)")
    add("--token-file", help="what clients must send (or the variable MINILLM_TOKEN)")
    add("--system", help="instructions for conversations that bring none")
    add("--context", type=int, help="tokens of prompt and answer (the model's, at most 2048)")
    add("--max-new-tokens", type=int, default=512, help="longest answer (512)")
    add("--max-batch", type=int, default=8, help="requests computed at once (8)")
    add("--max-waiting", type=int, default=64, help="requests that wait (64)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (auto)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
