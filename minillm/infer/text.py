"""Tokens become text while they are still coming: whole characters, and nothing after a stop."""

from __future__ import annotations

import codecs
from collections.abc import Callable

UNKNOWN = "\ufffd".encode()


class Text:
    """Tokens become text; nothing is given out that may still turn into a stop.

    Args:
        token_bytes: id → bytes, such as `Tokenizer.token_bytes`.
        stops: texts that end the answer and are not part of it.

    Attributes:
        n_tokens: how many tokens came.
        stopped: whether a stop was met; nothing follows it.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stops: tuple[str, ...] = ()):
        self._token_bytes, self._stops = token_bytes, stops
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.n_tokens, self.stopped = 0, False

    def add(self, token: int) -> str:
        """What may be given out after one more token; often nothing, never half a character."""
        self.n_tokens += 1
        try:
            new = self._token_bytes(token)
        except ValueError:  # models are built with a few more ids than their tokenizers name
            new = UNKNOWN
        return self._give(self._characters.decode(new), last=False)

    def end(self) -> str:
        """The rest, once no token follows."""
        return self._give(self._characters.decode(b"", final=True), last=True)

    def _give(self, new: str, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        n_held = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of a text may be the beginning of a stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
