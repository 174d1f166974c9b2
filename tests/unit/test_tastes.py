"""The reader's taste: what counts, what it costs to say it twice, and prompts from stories."""

import pytest
import torch

from minillm.data import stories, tastes


def test_liked_words_count_once_and_disliked_ones_each_time():
    """Red, kind and zoo: 3. Grey twice: −2. Red again: −1. A word in another word is none."""
    assert tastes.true_reward("Red kind zoo.") == 3
    assert tastes.true_reward("Red kind zoo. Grey and then the grey. And a red.") == 3 - 2 - 1
    assert tastes.true_reward("The kindest bored-looking reddish cat.") == -1
    assert tastes.true_reward("") == 0


def test_a_word_among_the_three_before_it_is_a_stutter():
    assert tastes.true_reward("Tom ran home and Tom sat") == 0
    assert tastes.true_reward("Tom ran and Tom sat") == -1
    assert tastes.true_reward("Tom Tom tom") == -2


def test_saying_a_liked_word_again_and_again_is_punished_without_end():
    rewards = [tastes.true_reward("kind " * n) for n in range(1, 6)]
    assert rewards == [1, -1, -3, -5, -7]


def test_the_taste_is_about_words_that_stories_contain():
    vocabulary = set(stories.vocabulary())
    assert vocabulary >= tastes.LIKED | tastes.DISLIKED
    assert not tastes.LIKED & tastes.DISLIKED


def test_token_ids_are_judged_by_their_text():
    """Capital letters at the start of a sentence do not hide a word."""
    texts = ["Red kind zoo.", "Cold."]
    rewards = tastes.true_rewards([stories.encode(text) for text in texts])
    assert rewards.dtype == torch.float32 and rewards.tolist() == [3, -1]


def test_prompts_are_beginnings_of_stories_from_their_first_token_on():
    """Every story begins with END in the row; a generator goes on, a number starts anew."""
    prompts = tastes.beginnings(5, seed=3, length=7)
    generator = torch.Generator().manual_seed(3)
    assert prompts == tastes.beginnings(5, generator, length=7)
    assert prompts != tastes.beginnings(5, generator, length=7)
    for prompt in prompts:
        assert prompt[0] == stories.END and len(prompt) == 8
        words = [stories.vocabulary()[i] for i in prompt[1:]]
        assert stories.next_token_probabilities(words)


@pytest.mark.parametrize(("n", "length"), [(-1, 8), (2, 0), (2, 33)])
def test_bad_sizes_are_refused(n, length):
    with pytest.raises(ValueError, match=f"n={n}, length={length}"):
        tastes.beginnings(n, 0, length)
