"""Corpora: shape of the data, and that no document is on two sides of a split."""

import pytest

from minillm.data import corpora

PARTS = ("train", "validation", "test")


def assert_no_leak(parts, key):
    for column in (key, "text"):
        seen = [set(parts[name][column]) for name in PARTS]
        assert sum(map(len, seen)) == len(set.union(*seen)) == sum(len(parts[n]) for n in PARTS)


def assert_shares(parts):
    """5% and 5%, within four standard deviations of a fair draw."""
    total = sum(len(parts[name]) for name in PARTS)
    for name in ("validation", "test"):
        deviation = (total * 0.05 * 0.95) ** 0.5
        assert abs(len(parts[name]) - 0.05 * total) < 4 * deviation


@pytest.mark.parametrize("language", ["en", "fr", "es"])
def test_wikipedia(language):
    parts = corpora.wikipedia(language)
    assert parts["train"].column_names == ["title", "text", "topic"]
    assert_no_leak(parts, "title")
    assert_shares(parts)


def test_english_wikipedia_holds_what_it_should():
    rows = [row for part in corpora.wikipedia().values() for row in part]
    assert len(rows) == 10_033
    (paris,) = [row for row in rows if row["title"] == "Paris"]
    assert "capital" in paris["text"] and len({row["topic"] for row in rows}) == 12


def test_idioms():
    parts = corpora.idioms()
    assert parts["train"].column_names == ["idiom", "text"]
    assert_no_leak(parts, "idiom")
    assert_shares(parts)
    assert sum(len(part) for part in parts.values()) > 28_000


def test_python_source_compiles():
    parts = corpora.python_source()
    assert_no_leak(parts, "path")
    assert any(path.endswith("json/decoder.py") for part in parts.values() for path in part["path"])
    for row in parts["test"]:
        compile(row["text"], row["path"], "exec", dont_inherit=True)


def test_countries():
    rows = {row["name"]: row for row in corpora.countries()}
    assert rows["France"]["capital"] == "Paris" and rows["Japan"]["currencies"] == ["JPY"]
    assert {"Germany", "Spain", "Italy"} <= set(rows["France"]["borders"])
    assert rows["Japan"]["borders"] == []
    assert rows["Brazil"]["region"] == "Americas" and "pt" in rows["Brazil"]["languages"]
    assert len(rows) == len(corpora.countries()) > 200


def test_country_records():
    parts = corpora.country_records()
    assert_no_leak(parts, "name")
    assert_shares(parts)
    texts = {row["name"]: row["text"] for part in parts.values() for row in part}
    assert texts.keys() >= set(corpora.countries()["name"])
    cameroon = texts["Cameroon"]
    assert '"alpha2": "CM"' in cameroon and '".cm"' in cameroon  # the code comes back
    assert not any("geoJSON" in text for text in texts.values())


def test_the_split_does_not_depend_on_order_and_drops_copies():
    rows = [{"key": f"k{i}", "text": f"text {i}"} for i in range(400)]
    copies = [
        {"key": "k1", "text": "other"},
        {"key": "z", "text": "text 2"},
        {"key": "e", "text": " "},
    ]
    forward = corpora._split(rows + copies, key="key")
    backward = corpora._split(reversed(rows), key="key")
    for name in PARTS:
        assert set(forward[name]["key"]) == set(backward[name]["key"])
    assert_no_leak(forward, "key")


def test_bad_arguments():
    with pytest.raises(ValueError, match="language='de': expected one of en, fr, es"):
        corpora.wikipedia("de")
    with pytest.raises(ValueError, match="max_bytes=0: expected a positive"):
        corpora.python_source(max_bytes=0)
