"""Generated instructions: right answers, phrasings held back, documents that answer nothing."""

import math
from collections import Counter

import pytest
from helpers import rng

from minillm.adapt.sft import encode_chat
from minillm.data.instruction_steps import NOUNS, STEPS, TABLE
from minillm.data.instructions import (
    SINGLES,
    compositions,
    documents,
    nats,
    sample_conversation,
    solve,
    split_kinds,
    tasks,
)
from minillm.data.packing import IGNORE
from minillm.data.word_tokenizer import WordTokenizer
from minillm.infer.chat import CHATML, find_template

WORDS = ["dog", "leaf", "sun"]
BY_HAND = {
    "reverse": "sun leaf dog",
    "first": "dog",
    "last": "sun",
    "drop_first": "leaf sun",
    "drop_last": "dog leaf",
    "rotate": "leaf sun dog",
    "repeat": "dog leaf sun dog leaf sun",
    "plural": "dogs leaves suns",
    "spanish": "perro hoja sol",
    "capitals": "DOG LEAF SUN",
    "french": "chien feuille soleil",
}


@pytest.mark.parametrize("name", STEPS)
def test_each_step_does_what_a_person_would(name):
    assert solve((name,), WORDS) == BY_HAND[name].split()
    assert STEPS[name].each_word == (name in ("plural", "spanish", "capitals", "french"))
    assert len(set(STEPS[name].clauses)) == 4


def test_steps_are_taken_in_order():
    assert solve(("rotate", "reverse"), WORDS) == ["dog", "sun", "leaf"]
    assert solve(("reverse", "rotate"), WORDS) == ["leaf", "dog", "sun"]
    assert solve(("reverse", "first", "plural"), WORDS) == ["suns"]


def test_all_words_and_clauses_differ():
    assert len(set(NOUNS)) == len(NOUNS)
    assert all(len(row) == 4 for row in TABLE)
    clauses = [clause for step in STEPS.values() for clause in step.clauses]
    assert len(set(clauses)) == len(clauses)


def test_compositions_ask_for_something():
    """Seven steps move words and three change them: 7·3·2 mixed pairs; and of the five that leave
    several words, each with six others that move them."""
    kinds = compositions()
    assert len(kinds) == len(set(kinds)) == 7 * 3 * 2 + 5 * 6
    assert not any("french" in kind for kind in kinds)
    for kind in kinds:
        answer = solve(kind, WORDS)
        assert answer and answer != WORDS


def test_kinds_are_split_without_overlap():
    learned, held_out = split_kinds(compositions(), 20, rng())
    assert len(held_out) == 20 and set(learned) | set(held_out) == set(compositions())
    assert not set(learned) & set(held_out)
    assert split_kinds(compositions(), 20, rng(1)) != (learned, held_out)


def test_tasks_are_balanced_distinct_and_reproducible():
    kinds = [*SINGLES, *compositions()]
    made = tasks(500, kinds, rng())
    assert tasks(500, kinds, rng()) == made != tasks(500, kinds, rng(1))
    assert len({task.instruction for task in made}) == 500
    counts = Counter(task.kind for task in made)
    assert max(counts.values()) - min(counts[kind] for kind in kinds) <= 1
    for task in made:
        assert task.answer.split() == solve(task.kind, task.words)
        assert " ".join(task.words) in task.instruction
        assert 3 <= len(set(task.words)) == len(task.words) <= 5
    assert {len(task.words) for task in made} == {3, 4, 5}


def test_no_instruction_comes_twice(monkeypatch):
    """Three nouns in six orders, four clauses and three frames: 72 instructions to choose from."""
    monkeypatch.setattr("minillm.data.instructions.NOUNS", ["dog", "cat", "sun"])
    assert len({task.instruction for task in tasks(60, [("reverse",)], rng())}) == 60


def test_a_phrasing_can_be_held_back():
    kept, held = (tasks(300, SINGLES, rng(), p) for p in ((0, 1, 2), (3,)))
    for task in kept:
        assert STEPS[task.kind[0]].clauses[3] not in task.instruction.lower()
    for task in held:
        assert STEPS[task.kind[0]].clauses[3] in task.instruction.lower()


def test_an_answer_is_recognised_and_nothing_else():
    (task,) = tasks(1, [("reverse",)], rng())
    assert task.solved_by(task.answer) and task.solved_by(f" {task.answer}.\n")
    wrong = (task.instruction, "", " ".join(task.words), task.answer + " dog", task.answer.upper())
    assert not any(task.solved_by(text) for text in wrong)
    assert task.messages == [("user", task.instruction), ("assistant", task.answer)]


def test_a_conversation_goes_on_from_the_last_answer():
    for seed in range(20):
        chat = sample_conversation(("rotate", "drop_first", "plural"), rng(seed))
        assert [role for role, _ in chat] == ["user", "assistant"] * 3
        first, second, third = (text.split() for role, text in chat if role == "assistant")
        assert second == solve(("drop_first",), first) and third == solve(("plural",), second)
        assert chat[2][1].startswith("Now ") and chat[2][1].endswith(".")


def test_documents_show_steps_at_work_and_answer_no_instruction():
    texts = documents(400, rng())
    assert documents(400, rng()) == texts
    accounts = [text for text in texts if text.startswith("Take ") and "If you" in text]
    assert 250 < len(accounts) < 380
    for text in accounts:
        listed, *shown = text.removeprefix("Take ").removesuffix(".").split(". If you ")
        assert len(shown) == 3
        for sentence in shown:
            clause, answer = sentence.split(", you get: ")
            name = next(n for n, step in STEPS.items() if clause in step.clauses)
            assert answer.split() == solve((name,), listed.split())
    for sheet in set(texts) - set(accounts):
        assert 3 <= len(sheet.split("\n")) <= 4 and "you get" not in sheet
    assert not any("french" in text for text in texts)
    assert all("french" in text for text in documents(20, rng(), [("french",)]))


def test_information_of_a_document_is_what_its_choices_hold():
    account = "Take dog cat sun bed. If you use spanish, you get: perro gato sol cama. If you "
    account += (
        "take the first word, you get: dog. If you use spanish, you get: perro gato sol cama."
    )
    choices = [
        5 / 4,
        3,
        40,
        39,
        38,
        37,
        40,
        40,
        40,
    ]  # the sort, how many, four nouns, three clauses
    assert nats(account) == pytest.approx(sum(map(math.log, choices)))
    line = [3, 3, 40, 39, 38, 40]  # the frame, how many, three nouns, the clause
    sheet = "Words: dog cat sun. Use spanish.\nHere are some words: bed key sea. Use spanish.\n"
    sheet += "Words: dog cat sun. Please use spanish."
    assert nats(sheet) == pytest.approx(sum(map(math.log, [5, 2, *line * 3])))


def test_word_tokenizer_knows_every_text():
    tokenizer = WordTokenizer()
    french = [("french",), ("reverse", "french")]
    texts = documents(300, rng()) + documents(100, rng(), french)
    for task in tasks(500, [*SINGLES, *compositions(), *french], rng()):
        texts += [task.instruction, task.answer]
    for text in texts:
        ids = tokenizer.encode(text)
        assert max(ids) < tokenizer.vocab_size
        assert tokenizer.decode(ids).casefold() == text.casefold()
        assert tokenizer.encode(tokenizer.decode(ids)) == ids
    assert len(tokenizer.encode("DOG dog dogs")) == len(set(tokenizer.encode("DOG dog dogs"))) == 3


def test_word_tokenizer_takes_the_place_of_a_tokenizer_in_chats():
    tokenizer = WordTokenizer()
    assert find_template(tokenizer) is CHATML
    example = encode_chat([("user", "Use capitals: dog"), ("assistant", "DOG")], CHATML, tokenizer)
    learned = [t for t in example.targets if t != IGNORE]
    assert learned == [*tokenizer.encode("DOG"), tokenizer.special_tokens["<|im_end|>"]]
    assert tokenizer.end_of_text == tokenizer.special_tokens["<|endoftext|>"]
    text = b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode("take dog, then\nsun."))
    assert text == b" take dog, then\n sun."


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="step 'sort': expected one of reverse"):
        solve(("sort",), WORDS)
    with pytest.raises(ValueError, match="'plural' does not know the word 'dogs'"):
        solve(("plural", "plural"), WORDS)
    with pytest.raises(ValueError, match="n_held_out=10: expected 0 to 9"):
        split_kinds(SINGLES, len(SINGLES))
    for bad in ((-1, SINGLES), (1, []), (1, SINGLES, None, ())):
        with pytest.raises(ValueError, match="something to choose from"):
            tasks(*bad)
    with pytest.raises(ValueError, match="0 or more, of some"):
        documents(-1)
    with pytest.raises(ValueError, match="the word 'wug' is not among"):
        WordTokenizer().encode("reverse the words: wug")
    with pytest.raises(ValueError, match="'!' is none of"):
        WordTokenizer().encode("dog !")
