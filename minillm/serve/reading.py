"""What a request's JSON means.

The format is that of OpenAI's chat completions and completions, which most clients speak. A field
that would change the answer and is not supported is refused; silently ignoring it would be worse.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minillm.data.tokenizer import Tokenizer
from minillm.infer.chat import Template
from minillm.infer.sampling import Sampler
from minillm.infer.scheduler import Request

# Fields that say nothing about the answer itself.
IGNORED = {"model", "user", "metadata", "store", "service_tier", "safety_identifier"}
# Not supported; these values ask for nothing.
NEUTRAL = {
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "echo": (False,),
    "tools": ([],),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MAX_STOPS = 4


class BadRequest(ValueError):
    """The body cannot be answered; `param` names the field."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Asked:
    """A request, read and checked.

    request: what the scheduler gets.
    stops: texts that end the answer and are not part of it.
    stream: send the tokens as they come; `usage`: and at the end how many they were.
    chat: whether the answer is a message or plain text.
    """

    request: Request
    stops: tuple[str, ...]
    stream: bool
    usage: bool
    chat: bool


class Reader:
    """Turns bodies into requests for one model.

    Args:
        tokenizer: the model's own.
        template: how the model writes conversations.
        stop_tokens: ids that end an answer.
        max_length: the most tokens of prompt and answer together.
        max_new_tokens: the most tokens of an answer; also what is used when nothing is asked for.
        system: instructions for conversations that bring none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        stop_tokens: tuple[int, ...],
        max_length: int,
        max_new_tokens: int,
        system: str | None = None,
    ):
        self.tokenizer, self.template, self.stop_tokens = tokenizer, template, stop_tokens
        self.max_length, self.max_new_tokens = max_length, max_new_tokens
        self.system = system

    def chat(self, body: bytes) -> Asked:
        """A body of /v1/chat/completions. Raises BadRequest."""
        return self._read(body, "messages", self._encode_messages)

    def completion(self, body: bytes) -> Asked:
        """A body of /v1/completions. Raises BadRequest."""
        return self._read(body, "prompt", self._encode_prompt)

    def _read(self, body: bytes, source: str, encode: Callable[[Any], list[int]]) -> Asked:
        fields = Fields(body)
        stream = fields.take("stream", bool, False)
        options = fields.take("stream_options", dict, {})
        sampler = _sampler(fields)
        seed = fields.take("seed", int, uuid.uuid4().int % 2**62)
        stops = _stops(fields)
        wanted = fields.take("max_tokens", int, None)
        wanted = fields.take("max_completion_tokens", int, wanted)
        content = fields.take(source, (list, str), None)
        fields.refuse_the_rest()
        try:
            prompt = encode(content)
        except BadRequest:
            raise
        except ValueError as error:  # the tokenizer does not know a character or a word
            raise BadRequest(str(error), source) from error
        request = Request(
            prompt=prompt,
            max_new_tokens=self._room(len(prompt), wanted),
            stop_tokens=self.stop_tokens,
            sampler=sampler,
            seed=seed % 2**62,
        )
        usage = bool(options.get("include_usage"))
        return Asked(request, stops, stream, usage, chat=source == "messages")

    def _room(self, n_prompt: int, wanted: int | None) -> int:
        """How many tokens the answer may have."""
        left = self.max_length - n_prompt
        if wanted is None:
            wanted = max(1, min(left, self.max_new_tokens))
        if not 1 <= wanted <= self.max_new_tokens:
            raise BadRequest(
                f"max_tokens={wanted}: expected between 1 and {self.max_new_tokens}", "max_tokens"
            )
        if wanted > left:
            raise BadRequest(
                f"the prompt has {n_prompt} tokens and {wanted} are to follow, more than the "
                f"{self.max_length} of this model together; shorten one of them",
                "max_tokens",
            )
        return wanted

    def _encode_messages(self, messages: Any) -> list[int]:
        if not isinstance(messages, list) or not messages:
            raise BadRequest("messages: expected a list with at least one message", "messages")
        pairs = [_message(i, message) for i, message in enumerate(messages)]
        if pairs[-1][0] == "assistant":
            raise BadRequest("messages: the last one must not be the assistant's", "messages")
        if self.system and all(role != "system" for role, _ in pairs):
            pairs.insert(0, ("system", self.system))
        return self.template.encode(self.tokenizer, pairs)

    def _encode_prompt(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str) and prompt:
            return self.tokenizer.encode(prompt)
        if isinstance(prompt, list) and prompt and all(type(i) is int for i in prompt):
            return prompt
        raise BadRequest("prompt: expected a text or a list of token ids, not empty", "prompt")


class Fields:
    """The fields of a JSON object, taken out one by one; what is left was not understood."""

    def __init__(self, body: bytes):
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the body is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise BadRequest(f"the body is a JSON {type(fields).__name__}: expected an object")
        self._left = {key: value for key, value in fields.items() if value is not None}

    def take(self, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        """The value of a field, of the given type; `default` if it is absent or null."""
        if name not in self._left:
            return default
        value = self._left.pop(name)
        kinds = (int, float) if kind is float else kind if isinstance(kind, tuple) else (kind,)
        if type(value) not in kinds:  # not isinstance: True is an int
            names = " or ".join(k.__name__ for k in kinds)
            raise BadRequest(f"{name} is {_short(value)}: expected {names}", name)
        if type(value) is float and not math.isfinite(value):
            raise BadRequest(f"{name} is {value}: expected a finite number", name)
        return value

    def refuse_the_rest(self) -> None:
        for name, value in self._left.items():
            if name not in IGNORED and value not in NEUTRAL.get(name, ()):
                raise BadRequest(f"{name}={_short(value)} is not supported here", name)


def _sampler(fields: Fields) -> Sampler:
    settings = {
        name: fields.take(name, kind, default)
        for name, kind, default in (
            ("temperature", float, 1.0),
            ("top_p", float, None),
            ("top_k", int, None),
            ("min_p", float, None),
            ("repetition_penalty", float, 1.0),
        )
    }
    try:
        return Sampler(**settings)
    except ValueError as error:
        raise BadRequest(str(error)) from error


def _stops(fields: Fields) -> tuple[str, ...]:
    stops = fields.take("stop", (str, list), [])
    stops = [stops] if isinstance(stops, str) else stops
    if len(stops) > MAX_STOPS or not all(isinstance(stop, str) and stop for stop in stops):
        raise BadRequest(f"stop: expected up to {MAX_STOPS} texts, none of them empty", "stop")
    return tuple(stops)


def _message(i: int, message: Any) -> tuple[str, str]:
    """(role, content) of a message. Content may be a list of parts, all of them text."""
    name = f"messages[{i}]"
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise BadRequest(f"{name}: expected an object with a role of {', '.join(ROLES)}", name)
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(content, str):
        raise BadRequest(f"{name}: the content must be text", name)
    return ROLES[message["role"]], content


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"
