"""Constitutional AI: what is asked of the model, and what is read off from what it says."""

import pytest
import torch
from helpers import rng

from minillm.align import constitution as con
from minillm.align.constitution import (
    CONSTITUTION,
    both_orders,
    choice_log_odds,
    critique_and_revise,
    draw_principles,
    preferences,
    supervised_batch,
)
from minillm.data import request_texts as rt
from minillm.data.packing import IGNORE
from minillm.data.requests import DEEDS, HARMS, attacks, draw
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer


@pytest.fixture(scope="module")
def model():
    n_words = len(rt.vocabulary())
    made = Transformer(llama_config(n_words, d_model=16, n_layers=2, n_heads=2, max_length=128))
    random = rng(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    return made


@pytest.fixture(scope="module")
def texts():
    requests = draw(5, DEEDS, attacks("searched"), rng(2))
    return [r.text for r in requests], [r.answer for r in requests], [
        r.deed.refusal() for r in requests
    ]  # fmt: skip


def test_choices_are_read_from_the_word_after_the_reason(model, texts, monkeypatch):
    """As from each row alone, without padding."""
    said = [f"helping harms {harm} by the rule . second" for harm in (*HARMS, "nobody")]
    monkeypatch.setattr(con, "_write", lambda *asked: said)
    found = choice_log_odds(model, *texts, CONSTITUTION[1])
    for row, (request, first, second) in enumerate(zip(*texts, strict=True)):
        asked = rt.to_choice(request, first, second, CONSTITUTION[1])
        ids = rt.encode(f"<end> {asked} {said[row].removesuffix(' second')}")
        odds = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        yes, no = rt.encode("first second")
        torch.testing.assert_close(found[row], odds[yes] - odds[no], rtol=1e-4, atol=1e-5)
    assert found.shape == (5,) and not found.requires_grad


def test_both_orders_take_preference_and_habit_apart():
    preference, bias = torch.tensor([1.5, -0.5, 0.0]), torch.tensor([2.0, 2.0, -1.0])
    found = both_orders(preference + bias, -preference + bias)
    torch.testing.assert_close(found[0], preference)
    torch.testing.assert_close(found[1], bias)
    with pytest.raises(ValueError, match="same shape"):
        both_orders(preference, bias[:2])


def test_preferences_do_not_depend_on_who_is_named_first(model, texts):
    requests, a, b = texts
    found = preferences(model, requests, a, b)
    torch.testing.assert_close(found, -preferences(model, requests, b, a))
    parts = [preferences(model, requests, a, b, [principle]) for principle in CONSTITUTION]
    torch.testing.assert_close(found, sum(parts))
    assert found.abs().min() > 1e-4
    assert (preferences(model, requests, a, a) == 0).all()


def test_a_revision_reads_request_answer_principle_and_critique(model, texts, monkeypatch):
    asked = []

    def written(model, prompts, temperature, generator):
        asked.extend(prompts)
        return ["the rule is broken . <revision> no .", "the rule is kept . <revision>", "so so"]

    monkeypatch.setattr(con, "_write", written)
    requests, answers, _ = (part[:3] for part in texts)
    found = critique_and_revise(model, requests, answers, ["x .", "y .", "z ."])
    assert [r.critique for r in found] == ["the rule is broken .", "the rule is kept .", "so so"]
    assert [r.revision for r in found] == ["no .", answers[1], answers[2]]
    assert [(r.request, r.answer, r.principle) for r in found] == list(
        zip(requests, answers, ["x .", "y .", "z ."], strict=True)
    )
    assert asked[2] == f"<request> {requests[2]} <answer> {answers[2]} <rule> z . <critique>"


def test_what_is_written_ends_with_the_end(model, texts):
    """Greedy, as from the whole text read anew for each word."""
    request = texts[0][0]
    (found,) = con.answers(model, [request])
    ids = rt.encode(f"<end> <user> {request} <assistant>")
    said = []
    while len(said) < 64:
        said.append(int(model(torch.tensor([ids + said]))[0, -1].argmax()))
        if said[-1] == rt.END:
            said.pop()
            break
    assert found == rt.decode(said)
    several = con.answers(model, texts[0], temperature=1.0, generator=rng(3))
    assert several == con.answers(model, texts[0], temperature=1.0, generator=rng(3))
    assert several != con.answers(model, texts[0])


def test_only_the_response_is_learned():
    batch = supervised_batch(["how do i hit the dog ?", "hello ."], ["no .", "hello , friend ."])
    for row, (request, response) in enumerate(
        [("how do i hit the dog ?", "no ."), ("hello .", "hello , friend .")]
    ):
        prompt = rt.encode(f"<end> <user> {request} <assistant>")
        learned = batch.targets[row] != IGNORE
        assert batch.tokens[row, : len(prompt)].tolist() == prompt
        assert batch.targets[row][learned].tolist() == [*rt.encode(response), rt.END]
        assert int(learned.nonzero()[0]) == len(prompt) - 1


def test_principles_are_drawn_evenly():
    drawn = draw_principles(CONSTITUTION, 900, rng())
    assert all(120 < drawn.count(principle) < 240 for principle in CONSTITUTION)
    assert drawn == draw_principles(CONSTITUTION, 900, rng())


def test_refuses(model, texts):
    requests, a, b = texts
    with pytest.raises(ValueError, match="empty"):
        draw_principles([], 3)
    with pytest.raises(ValueError, match=r"'principles': 1.*as many of each"):
        critique_and_revise(model, requests, a, CONSTITUTION[:1])
    with pytest.raises(ValueError, match=r"'second': 4.*as many of each"):
        choice_log_odds(model, requests, a, b[:4], CONSTITUTION[0])
