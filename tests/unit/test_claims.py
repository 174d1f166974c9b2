"""Claims hold or raise, and always leave a record the runner can read."""

import json
import math

import nbclient
import nbformat
import pytest
import torch

from minillm.course import ClaimError, claim, claims, claims_table, finding

TEXT = {"says": "Two is more than one", "source": "Euclid, book 5"}


@pytest.fixture(autouse=True)
def fresh_session(monkeypatch):
    monkeypatch.setattr(claims, "_session", {})


@pytest.mark.parametrize(
    ("value", "op", "threshold"), [(2, ">", 1), (1, ">=", 1), (1, "<", 2), (2, "<=", 2)]
)
def test_a_claim_that_holds_is_silent_and_recorded(value, op, threshold):
    claim("order.holds", value, op, threshold, **TEXT)
    (record,) = claims_table()
    assert record.holds and record.mark == "✓"


@pytest.mark.parametrize(
    ("value", "op", "threshold"), [(1, ">", 1), (0.9, ">=", 1), (2, "<", 2), (2.1, "<=", 2)]
)
def test_a_claim_that_does_not_hold_is_shown_and_raises(value, op, threshold, capsys):
    with pytest.raises(ClaimError, match=r"order\.fails"):
        claim("order.fails", value, op, threshold, **TEXT)
    assert "✗ order.fails" in capsys.readouterr().out
    assert not claims_table()[0].holds


@pytest.mark.parametrize("op", ["<", "<=", ">", ">="])
def test_nan_never_holds(op):
    with pytest.raises(AssertionError, match="nan"):
        claim("order.nan", math.nan, op, 0, **TEXT)


def test_the_same_name_replaces_its_record():
    claim("order.twice", 2, ">", 1, **TEXT)
    claim("order.twice", 3, ">", 1, **TEXT)
    assert [record.value for record in claims_table()] == [3.0]


def test_a_finding_records_and_never_raises():
    finding("order.nothing", math.inf, **TEXT)
    (record,) = claims_table()
    assert record.mark == "·" and record.bound == "reported"


@pytest.mark.parametrize("value", [0.25, math.nan, math.inf, torch.tensor(0.25)])
def test_records_survive_strict_json(value):
    finding("order.json", value, **TEXT)
    (record,) = claims_table()
    text = json.dumps(record.to_dict(), allow_nan=False)
    assert repr(claims.Record.from_dict(json.loads(text))) == repr(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"op": "=="}, "expected one of < <= > >="),
        ({"threshold": math.nan}, "expected a finite number"),
        ({"name": "No Dot"}, "lesson_topic.what-it-says"),
        ({"says": " "}, "says=' '"),
        ({"source": ""}, "source=''"),
    ],
)
def test_malformed_claims_are_refused(change, message):
    good = {"name": "order.bad", "value": 2, "op": ">", "threshold": 1, **TEXT}
    with pytest.raises(ValueError, match=message):
        claim(**good | change)
    assert not claims_table()


def test_text_is_escaped_in_html():
    finding("order.html", 1, says="a < b & c", source="<i>")
    for shown in (claims_table()._repr_html_(), claims_table()[0]._repr_mimebundle_()["text/html"]):
        assert "a &lt; b &amp; c" in shown and "<i>" not in shown


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.43210, "0.4321"), (1234.5, "1,234"), (7, "7"), (3.2e-7, "3.2e-07"), (math.nan, "nan")],
)
def test_numbers_read_well(value, text):
    assert claims.number(value) == text


def test_a_real_kernel_leaves_the_record_in_the_output_even_when_the_claim_fails():
    source = (
        "from minillm.course import claim\n"
        "claim('order.kernel', float('nan'), '>', 1, says='s', source='t')"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, kernel_name="python3", allow_errors=True).execute()
    shown, error = notebook.cells[0].outputs
    assert set(shown.data) == {claims.MIME, "text/html", "text/plain"}
    assert shown.data[claims.MIME]["value"] == "nan" and not shown.data[claims.MIME]["holds"]
    assert error.ename == "ClaimError"
