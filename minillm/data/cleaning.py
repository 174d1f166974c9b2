"""Cleaning: which documents to keep, what to hide in them, how much of each source to use.

Rules that a person can read, in the order a pipeline applies them: quality signals
(Rae et al. 2021, "Scaling Language Models" (Gopher), appendix A.1.1), language, personal
data, and the mixture of sources. Finding copies is in `dedup.py`.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

# --- Quality -----------------------------------------------------------------------------

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
BULLETS = ("•", "‣", "- ", "* ", "– ")

# signal: (lowest, highest) value that is kept. Gopher's numbers; its text is English.
GOPHER_RULES: dict[str, tuple[float, float]] = {
    "words": (50, 100_000),
    "mean_word_length": (3, 10),
    "symbols_per_word": (0, 0.1),
    "bullet_lines": (0, 0.9),
    "ellipsis_lines": (0, 0.3),
    "alphabetic_words": (0.8, 1),
    "stop_words": (2, float("inf")),
    "duplicate_lines": (0, 0.3),
    "top_bigram": (0, 0.2),
    "duplicate_5grams": (0, 0.15),
}


def quality_signals(text: str) -> dict[str, float]:
    """Ten numbers that tell prose from boilerplate; `GOPHER_RULES` has the same keys.

    words: how many. mean_word_length: characters. symbols_per_word: "#", "..." and "…" per
    word. bullet_lines, ellipsis_lines, duplicate_lines: fraction of the non-empty lines.
    alphabetic_words: fraction of words with a letter. stop_words: how many of eight common
    English words occur. top_bigram: fraction of the words' characters that the most frequent
    pair of words takes up, if it occurs twice. duplicate_5grams: fraction of the words that
    lie inside a run of five words that occurs more than once.

    >>> quality_signals("the cat and the dog")["stop_words"]
    2.0
    """
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    characters = sum(map(len, words))
    n_words, n_lines = max(len(words), 1), max(len(lines), 1)
    symbols = text.count("#") + text.count("...") + text.count("…")
    return {
        "words": float(len(words)),
        "mean_word_length": characters / n_words,
        "symbols_per_word": symbols / n_words,
        "bullet_lines": sum(line.startswith(BULLETS) for line in lines) / n_lines,
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in lines) / n_lines,
        "alphabetic_words": sum(any(map(str.isalpha, word)) for word in words) / n_words,
        "stop_words": float(len(STOP_WORDS.intersection(text.lower().split()))),
        "duplicate_lines": 1 - len(set(lines)) / n_lines if lines else 0.0,
        "top_bigram": _top_bigram(words, characters),
        "duplicate_5grams": _inside_duplicates(words, 5),
    }


def _top_bigram(words: list[str], characters: int) -> float:
    counts = Counter(pairwise(words))
    if not counts:
        return 0.0
    pair, count = counts.most_common(1)[0]
    # "ha ha ha" overlaps itself: no more than all of the characters
    return min(1.0, count * sum(map(len, pair)) / characters) if count > 1 else 0.0


def _inside_duplicates(words: list[str], n: int) -> float:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    counts = Counter(grams)
    inside = {i + j for i, gram in enumerate(grams) if counts[gram] > 1 for j in range(n)}
    return len(inside) / max(len(words), 1)


def failed_rules(text: str, rules: Mapping[str, tuple[float, float]] = GOPHER_RULES) -> list[str]:
    """Names of the rules a text breaks, in the order of `rules`.

    Raises ValueError for a rule about a signal that does not exist.
    """
    signals = quality_signals(text)
    if unknown := [name for name in rules if name not in signals]:
        raise ValueError(f"no signal called {unknown[0]!r}, expected one of {sorted(signals)}")
    return [name for name, (low, high) in rules.items() if not low <= signals[name] <= high]


def passes_quality(text: str, rules: Mapping[str, tuple[float, float]] = GOPHER_RULES) -> bool:
    """True if a text breaks none of the rules."""
    return not failed_rules(text, rules)


# --- Language ----------------------------------------------------------------------------

# The commonest short words of each language. Words shared by two languages pull both ways,
# so the ones a language has for itself decide.
FUNCTION_WORDS = {
    "en": "the of and to in is was that for it with as his on be at by are this which from",
    "fr": "le la les de des du et est un une dans en que qui pour au par sur il elle avec",
    "es": "el la los las de del y es un una en que por con para se su como al fue más",
    "de": "der die das und ist ein eine in den von zu mit des dem auf für nicht sich als",
    "it": "il la di che e è un una in per con del della dei gli le si nel da sono alla",
    "pt": "o a os as de do da e é um uma em que por com para no na dos das ao foi mais",
    "nl": "de het een en van in is dat op te met voor zijn niet aan er om ook als werd",
}
_FUNCTION_WORDS = {code: frozenset(words.split()) for code, words in FUNCTION_WORDS.items()}

# The script settles the rest; order matters, since Japanese also uses Han characters.
SCRIPTS = {
    "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "CJK": "zh", "CYRILLIC": "ru",
    "ARABIC": "ar", "GREEK": "el", "HEBREW": "he", "DEVANAGARI": "hi", "THAI": "th",
}  # fmt: skip


def language(text: str) -> str:
    """A guess at the language of a text: an ISO 639-1 code, or "und" (undetermined).

    The script decides where it is not Latin (one language a script: a simplification, all
    Cyrillic counts as Russian); for Latin letters the language with the most function words.
    Real pipelines use a trained classifier over character n-grams (Joulin et al. 2017).

    >>> language("The capital of France is Paris."), language("北京是中国的首都。")
    ('en', 'zh')
    """
    letters = [character for character in text[:2000] if character.isalpha()]
    if not letters:
        return "und"
    scripts = Counter(unicodedata.name(letter, "?").split()[0].split("-")[0] for letter in letters)
    if scripts["LATIN"] < len(letters) / 2:
        kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
        if kana > len(letters) / 20:
            return "ja"
        return SCRIPTS.get(scripts.most_common(1)[0][0], "und")

    words = Counter(re.findall(r"[^\W\d_]+", text.lower()))
    scores = {code: sum(words[word] for word in known) for code, known in _FUNCTION_WORDS.items()}
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] else "und"


# --- Personal data -----------------------------------------------------------------------

_EMAIL = re.compile(r"\b[\w.+%-]+@(?:[\w-]+\.)+[A-Za-z]{2,}\b")
# anything that could be an address is tried; `ipaddress` knows what really is one
_MAYBE_IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f:]*:[0-9A-Fa-f:]+)(?![\w:])"
)
_PHONE = re.compile(
    r"""(?<![\w.+-])(?:
        \+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}      # +44 20 7946 0958
      | \(\d{3}\)[ ]?\d{3}[ .-]\d{4}               # (555) 010-4477
      | \d{3}[ .-]\d{3}[ .-]\d{4}                  # 555-010-4477
    )(?![\w-])""",
    re.VERBOSE,
)


def mask_pii(text: str) -> str:
    """Replace e-mail addresses, IP addresses and phone numbers by <EMAIL>, <IP>, <PHONE>.

    Years, dates, prices and version numbers of fewer than four parts stay. Names and postal
    addresses need a trained tagger and stay as well.

    >>> mask_pii("Write to ana@mail.example or call +44 20 7946 0958.")
    'Write to <EMAIL> or call <PHONE>.'
    """
    text = _EMAIL.sub("<EMAIL>", text)
    text = _MAYBE_IP.sub(lambda match: "<IP>" if _is_ip(match[0]) else match[0], text)
    return _PHONE.sub("<PHONE>", text)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return any(map(str.isdigit, text))  # "a::b" is an address on paper, a name in a program


# --- Mixture -----------------------------------------------------------------------------


def mixture_weights(sizes: Mapping[str, float], temperature: float = 1.0) -> dict[str, float]:
    """How often to draw from each source: p ∝ size^(1/temperature), summing to 1.

    temperature 1 draws in proportion to size, a large one evenly: small sources are then
    seen more often than they weigh (Conneau & Lample 2019, §3.1, with α = 1/temperature).

    sizes: tokens (or documents) of each source.

    Raises:
        ValueError: no sources, an empty one, or a temperature of 0 or less.

    >>> mixture_weights({"en": 900, "zh": 100}, temperature=2)
    {'en': 0.75, 'zh': 0.25}
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a number above 0")
    for name, size in sizes.items():
        if not size > 0:
            raise ValueError(f"source {name!r} has size {size}, expected more than 0")
    if not sizes:
        raise ValueError("no sources: expected at least one name with its size")
    largest = max(sizes.values())  # divided out first, so that a low temperature cannot overflow
    powers = {name: (size / largest) ** (1 / temperature) for name, size in sizes.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}
