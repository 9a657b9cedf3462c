import time

import pytest

from qwen_image_2.model import prompt


def test_template_of_text_to_image():
    assert prompt.render("a cat") == (
        "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
        "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n")


def test_template_with_references():
    slot = "<|vision_start|><|image_pad|><|vision_end|>"
    assert f"user\n<image1>{slot} <image2>{slot}make it blue<|im_end|>" in prompt.render("make it blue", 2)


def test_an_empty_prompt_is_one_space():
    assert "user\n <|im_end|>" in prompt.render("")


@pytest.mark.parametrize("text, words", [
    ('a sign "OPEN" and “咖啡”', ["OPEN", "咖啡"]),
    ('"OPEN", again "OPEN", and " "', ["OPEN"]),
    ('a 5" nail\nand a 6" one', []),  # a quotation ends on its line
    ('“outer "inner" outer”', ['outer "inner" outer']),
    ("no words, it's plain", [])])
def test_quoted_words(text, words):
    assert prompt.quoted(text) == words


def test_quotes_without_end_take_no_time():
    begin = time.monotonic()
    assert prompt.quoted("“" * 60_000) == [] and prompt.quoted('"\n' * 30_000) == []
    assert time.monotonic() - begin < 1
