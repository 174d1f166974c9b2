"""The shared comparisons: what passes, and the words a wrong answer gets."""

import math

import pytest
import torch

from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)

RIGHT = torch.tensor([1.0, 2.0])


def test_right_answers_pass():
    assert_close(RIGHT + 1e-7, RIGHT)
    assert_close(RIGHT.double(), RIGHT)
    assert_close(torch.tensor([math.inf, math.nan]), torch.tensor([math.inf, math.nan]))
    assert_close(3, 3.0)
    assert_close(torch.tensor(3.0), 3.0)
    assert_close([1, 2], (1.0, 2.0))
    assert_equal({"a": [1]}, {"a": [1]})
    assert_shape(torch.ones(2, 3), (2, 3))
    assert_same_gradients(lambda x: x * x, lambda x: x**2, [RIGHT])
    assert_unchanged(lambda x: x + 1, RIGHT)
    refuses(int, "x", words="invalid literal")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "None: did you forget to return it"),
        ([1.0, 2.0], "is a list; expected Tensor"),
        (torch.ones(3), r"shape \(3,\); expected \(2,\)"),
        (torch.tensor([1, 2]), "dtype torch.int64; expected torch.float32"),
        (torch.tensor([1.0, math.nan]), "NaN in 1 of 2 places"),
        (torch.tensor([1.0, 4.0]), "you squared it"),
        (torch.tensor([1.0, 5.0]), r"is 5 at index \[1\]; expected 2 \(1 of 2"),
        (torch.tensor([[1.0, 2.0]]), "a row too many"),
    ],
)
def test_wrong_tensors_are_named(answer, words):
    mistakes = {
        "you squared it": RIGHT**2,
        "a row too many": lambda: RIGHT[None],
    }
    with pytest.raises(AssertionError, match=words):
        assert_close(answer, RIGHT, mistakes=mistakes)


def test_a_mistake_equal_to_the_right_answer_is_never_reported():
    assert_close(RIGHT, RIGHT, mistakes={"nothing is wrong": RIGHT})


def test_other_wrong_answers_are_named():
    with pytest.raises(AssertionError, match="is True"):
        assert_equal("True", "False", name="your verdict is True; it")
    with pytest.raises(AssertionError, match="off by one"):
        assert_equal([2, 3], [1, 2], mistakes={"off by one": [2, 3]})
    with pytest.raises(AssertionError, match="is a bool; expected int"):
        assert_type(True, int)
    with pytest.raises(AssertionError, match="transposed"):
        assert_shape(torch.ones(2, 3), (3, 2), mistakes={"transposed": (2, 3)})
    with pytest.raises(AssertionError, match="argument 1 in place"):
        assert_unchanged(lambda x: x.add_(1), RIGHT.clone())


def test_wrong_gradients_are_named():
    with pytest.raises(AssertionError, match="no gradient flows"):
        assert_same_gradients(lambda x: x.detach() * 2, lambda x: x * 2, [RIGHT])
    with pytest.raises(AssertionError, match="you doubled"):
        assert_same_gradients(
            lambda x: x * 2, lambda x: x * 3, [RIGHT], mistakes={"you doubled": lambda x: x * 2}
        )
    with pytest.raises(AssertionError, match="gradient of your function for argument 2"):
        assert_same_gradients(lambda x, y: x * y, lambda x, y: x * y.detach(), [RIGHT, RIGHT])


def test_bad_input_must_be_refused_in_words():
    with pytest.raises(AssertionError, match="returns 3; it should raise ValueError"):
        refuses(int, "3")
    with pytest.raises(AssertionError, match="does not mention 'shape'"):
        refuses(int, "x", words="shape")
    with pytest.raises(AssertionError, match=r"tensor of shape \(2,\)\) raises KeyError"):
        refuses({}.__getitem__, RIGHT)


def test_untouched_stub_passes_through():
    def stub(x):
        raise NotImplementedError

    with pytest.raises(NotImplementedError):
        refuses(stub, 1)
    with pytest.raises(NotImplementedError):
        assert_same_gradients(stub, lambda x: x, [RIGHT])
