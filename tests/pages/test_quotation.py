"""Quoted literals can be read back, whatever they hold."""
import itertools
import time

import pytest

from qwen_image_2.pages.quotation import closed, literals, quote
from qwen_image_2.pages.vocabulary import LANGUAGES

MARKS = '"“”„「」『』\'«»'


def texts():
    """Every combination of up to three marks inside a text, at its ends and next to each other."""
    for count in range(4):
        for marks in itertools.product(MARKS, repeat=count):
            yield "a".join(["", *marks, ""])
            yield "".join(marks) + "a"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_comes_back_from_between_its_quotation_marks(language):
    pairs = LANGUAGES[language].pairs
    for text in filter(None, texts()):
        prompt = f"The title's words: {quote(text, pairs)}, below it {quote('END', pairs)}."
        assert literals(prompt) == [text, "END"] and closed(prompt)


def test_a_text_with_all_marks_is_refused():
    pairs = LANGUAGES["English"].pairs
    with pytest.raises(ValueError, match="contains every kind of quotation mark .*, so none is left to enclose it"):
        quote('a"b“c「d』', pairs)


def test_what_people_write_is_read():
    prompt = 'a sign "FRUIT", “茶”, „Obst“, „owoce”, 「果物」 and 『本』, but not \'this\' nor "" nor «that»'
    assert literals(prompt) == ["FRUIT", "茶", "Obst", "owoce", "果物", "本"]


@pytest.mark.parametrize("prompt", ['a 12" record', "the “end", "「"])
def test_a_quotation_without_end_is_seen(prompt):
    assert not closed(prompt)
    assert literals(prompt) == []


def test_quotations_without_end_take_no_time():
    begin = time.process_time()
    for mark in "“「『„":
        assert literals(mark * 60_000) == []
    assert time.process_time() - begin < 1
