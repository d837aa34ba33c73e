"""Tests of your function: run `pytest` in this folder. With pytest in requirements.txt they run in each build, too."""

from handler import example, predict


def test_answers_come_in_the_order_of_their_requests():
    """Whoever sent the first item of a batch gets the first answer."""
    assert predict(["Ada", "Grace"]) == ["Hello! You said: Ada", "Hello! You said: Grace"]


def test_the_example_is_answered():
    """Also beside others: INFless measures the function with it, in batches."""
    assert len(predict([example()] * 3)) == 3
