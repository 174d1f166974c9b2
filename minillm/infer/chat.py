"""A conversation with a language model: its template, and a cache that outlives the turns.

A chat model continues a text in which special tokens mark who speaks. A `Template` says how that
text is written; it is a line of data here, and no template program of a downloaded model is run.
`Chat` keeps the tokens of the conversation and the cache that has read them, so each turn reads
only what is new.

Tensor legend: B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minillm.data.tokenizer import Tokenizer
from minillm.infer.sampling import Sampler
from minillm.infer.text import Text
from minillm.model.cache import KVCache
from minillm.model.transformer import Transformer

_MARKER = re.compile(r"(<\|\w+\|>)")

# What SmolLM2 was told in its training when nobody said anything else (Allal et al. 2025).
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@dataclass(frozen=True)
class Template:
    """How a conversation is written down.

    Attributes:
        name: for messages to people.
        turn: one turn, with `{role}` and `{content}` in their places.
        end: the special token with which the model ends its answer; None if it has no such token.
        start: what stands once before the first turn.
    """

    name: str
    turn: str
    end: str | None = None
    start: str = ""

    @property
    def markers(self) -> list[str]:
        """The special tokens that the template needs."""
        return _MARKER.findall(self.start + self.turn)

    def encode(
        self, tokenizer: Tokenizer, messages: Iterable[tuple[str, str]], answer: bool = True
    ) -> list[int]:
        """Token ids of a conversation.

        Args:
            messages: (role, content) pairs; roles are "system", "user" and "assistant". What looks
                like a special token in a content stays the plain text it is.
            answer: end where the assistant's next answer begins.
        """
        ids = self._encode(tokenizer, self.start)
        for role, content in messages:
            ids += self.encode_turn(tokenizer, role, content)
        return ids + self.opening(tokenizer, "assistant") if answer else ids

    def encode_turn(self, tokenizer: Tokenizer, role: str, content: str) -> list[int]:
        """Token ids of one whole turn."""
        return self._encode(tokenizer, self.turn, role, content)

    def jinja(self) -> str:
        """The same in the language that other programs read, to be exported with a model."""
        opening, _, closing = self.turn.partition("{content}")
        before, _, after = opening.partition("{role}")  # no role in plain text
        first = f"{before!r} + message['role'] + {after!r} + " if after else ""
        return (
            f"{{{{ {self.start!r} }}}}{{% for message in messages %}}"
            f"{{{{ {first}message['content'] + {closing!r} }}}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {opening.format(role='assistant')!r} }}}}"
            "{% endif %}"
        )

    def opening(self, tokenizer: Tokenizer, role: str) -> list[int]:
        """Token ids of a turn up to its content."""
        return self._encode(tokenizer, self.turn.partition("{content}")[0], role)

    def closing(self, tokenizer: Tokenizer) -> list[int]:
        """Token ids of a turn after its content."""
        return self._encode(tokenizer, self.turn.partition("{content}")[2])

    def _encode(
        self, tokenizer: Tokenizer, text: str, role: str = "", content: str = ""
    ) -> list[int]:
        ids: list[int] = []
        # Cut first, fill in later: nobody looks for markers in what a user has typed.
        for i, piece in enumerate(_MARKER.split(text)):
            if i % 2:
                ids.append(tokenizer.special_tokens[piece])
            else:
                ids += tokenizer.encode(piece.replace("{role}", role).replace("{content}", content))
        return ids


# The models of each: SmolLM2, SmolLM3, Qwen; Llama 3; Phi-4. The more particular comes first.
PHI4 = Template("Phi-4", "<|im_start|>{role}<|im_sep|>{content}<|im_end|>", end="<|im_end|>")
CHATML = Template("ChatML", "<|im_start|>{role}\n{content}<|im_end|>\n", end="<|im_end|>")
LLAMA3 = Template(
    "Llama 3",
    "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
    end="<|eot_id|>",
    start="<|begin_of_text|>",
)
PLAIN = Template("plain text", "{content}")
TEMPLATES = (PHI4, CHATML, LLAMA3)


def find_template(tokenizer: Tokenizer) -> Template:
    """The template whose special tokens the tokenizer has; `PLAIN` if there is none."""
    known = tokenizer.special_tokens.keys()
    return next((t for t in TEMPLATES if known >= set(t.markers)), PLAIN)


class Chat:
    """A conversation; `say` gives the model's answer piece by piece.

        chat = Chat(*hf.smollm2(), system=SMOLLM2_SYSTEM)
        for piece in chat.say("What is the capital of France?"):
            print(piece, end="", flush=True)

    Attributes:
        exchanges: the tokens of each question with its answer, oldest first.
        ending: why the last answer ended: "end" (the model ended it), "length" (it reached
            `max_new_tokens`) or "stopped" (whoever listened stopped listening).
        forgotten: how many of the oldest exchanges the last message pushed out.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        template: Template | None = None,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        max_new_tokens: int | None = None,
        context: int | None = None,
        cache_type: type[KVCache] = KVCache,
    ):
        """Start a conversation.

        Args:
            model: a decoder, on any device.
            tokenizer: the model's own.
            system: instructions that stand before the first turn and are never forgotten.
            template: how the conversation is written; None looks at the tokenizer's special tokens.
            sampler: how tokens are chosen; `Sampler(temperature=0)` is greedy.
            generator: its randomness; None takes the global generator.
            max_new_tokens: the most tokens of one answer; None is 256, or half the context if less.
            context: the most tokens of the whole conversation, for which memory is taken at once;
                None is the model's `max_length`, but at most 2,048.
            cache_type: what holds the keys and values, such as `adapt.quant_cache.Int8Cache`.

        Raises:
            ValueError: the model is no decoder, or the context has no room for an answer.
        """
        if not isinstance(model, Transformer) or model.config.mask == "bidirectional":
            raise ValueError(f"only a decoder can chat, and this {type(model).__name__} is none")
        longest = model.config.max_length
        context = min(longest, 2048) if context is None else context
        if max_new_tokens is None:
            max_new_tokens = min(256, context // 2)
        if not 1 <= max_new_tokens < context <= longest:
            raise ValueError(
                f"max_new_tokens={max_new_tokens}, context={context}: expected 1 ≤ max_new_tokens "
                f"< context ≤ {longest}, the model's max_length"
            )
        self.model, self.tokenizer = model, tokenizer
        self.template = template or find_template(tokenizer)
        self.sampler, self.generator = sampler or Sampler(), generator
        self.max_new_tokens, self.context = max_new_tokens, context
        self.cache_type = cache_type
        messages = [("system", system)] if system else []
        self._start = self.template.encode(tokenizer, messages, answer=False)
        self._stop_tokens = set()
        if self.template.end:
            self._stop_tokens.add(tokenizer.special_tokens[self.template.end])
        with contextlib.suppress(ValueError):  # not every tokenizer has one
            self._stop_tokens.add(tokenizer.end_of_text)
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system's instructions."""
        self.exchanges: list[list[int]] = []
        self.ending: Literal["end", "length", "stopped"] = "end"
        self.forgotten = 0
        self._forget_reading()

    @property
    def tokens(self) -> list[int]:
        """The conversation as the model sees it: what it has read, and what it will read next."""
        return self._start + [token for exchange in self.exchanges for token in exchange]

    def say(self, text: str) -> Iterator[str]:
        """Send a message; the answer comes in pieces, each one or more whole characters.

        When the context is full the oldest exchanges are forgotten. An answer that nobody listens
        to any more (the iterator is closed, or raises) stays in the history as far as it got.

        Raises:
            ValueError: the message is empty, or with an answer longer than the context.
        """
        if not text:
            raise ValueError("the message is empty")
        question = self.template.encode_turn(self.tokenizer, "user", text)
        question += self.template.opening(self.tokenizer, "assistant")
        self._make_room(len(question))
        exchange = question
        self.exchanges.append(exchange)
        self.ending = "stopped"
        written = Text(self.tokenizer.token_bytes)
        try:
            for _ in range(self.max_new_tokens):
                token = self._choose(self._read())
                if token in self._stop_tokens:
                    self.ending = "end"
                    break
                exchange.append(token)
                if piece := written.add(token):
                    yield piece
            else:
                self.ending = "length"
            if piece := written.end():
                yield piece
        finally:
            exchange += self.template.closing(self.tokenizer)

    def _make_room(self, n_question: int) -> None:
        """Forget the oldest exchanges until a question and its answer fit."""
        needed = n_question + self.max_new_tokens + len(self.template.closing(self.tokenizer))
        if len(self._start) + needed > self.context:
            raise ValueError(
                f"the message is {n_question} tokens long; with {len(self._start)} of instructions "
                f"and {self.max_new_tokens} for the answer it exceeds the context of "
                f"{self.context}: shorten it, or lower max_new_tokens"
            )
        self.forgotten = 0
        while len(self.tokens) + needed > self.context:
            del self.exchanges[0]
            self.forgotten += 1
        if self.forgotten:
            # What is left was read with the forgotten before it, at later positions.
            self._forget_reading()

    def _forget_reading(self) -> None:
        dtype = next(self.model.parameters()).dtype
        self._cache = self.cache_type(self.model.config, 1, self.context, self.model.device, dtype)

    @torch.inference_mode()
    def _read(self) -> Tensor:
        """Read the tokens that the cache lacks: logits (1, V) after the last one."""
        n_read = self._cache.dropped + self._cache.reach(0)
        unread = torch.tensor([self.tokens[n_read:]], device=self.model.device)  # (1, T)
        hidden = self.model.hidden(unread, cache=self._cache)
        self._cache.advance(unread.shape[1])
        return self.model.logits(hidden[:, -1])

    def _choose(self, logits: Tensor) -> int:
        history = None
        if self.sampler.repetition_penalty != 1:
            history = torch.tensor([self.tokens], device=logits.device)
        return int(self.sampler(logits, self.generator, history))
