"""Fonts that are damaged where nobody looks before a letter is drawn."""
import pytest
from PIL import ImageFont

from qwen_image_2.messages import Refusal
from qwen_image_2.pages import glyphs


def with_broken_outlines(content: bytes) -> bytes:
    """A TrueType font whose head is as it was, and whose letters are all 0xff."""
    tables = {content[at:at + 4]: at for at in range(12, 12 + 16 * int.from_bytes(content[4:6], "big"), 16)}
    begin, size = (int.from_bytes(content[tables[b"glyf"] + at:][:4], "big") for at in (8, 12))
    return content[:begin] + b"\x01" * size + content[begin + size:]


def with_huge_letters(content: bytes) -> bytes:
    """The same TrueType font on an em of 16 units instead of 2048: each letter is 128 times as large."""
    tables = {content[at:at + 4]: at for at in range(12, 12 + 16 * int.from_bytes(content[4:6], "big"), 16)}
    em = int.from_bytes(content[tables[b"head"] + 8:][:4], "big") + 18
    return content[:em] + (16).to_bytes(2, "big") + content[em + 2:]


def test_letters_that_are_larger_than_any_page(tmp_path):
    """Pillow refuses their bitmap with an error of its own, before it makes it."""
    path = tmp_path / "odd.ttf"
    path.write_bytes(with_huge_letters(ImageFont.load_default(16).font_bytes))
    with pytest.raises(Refusal, match=r"^The font odd\.ttf cannot be read \(.+\)\. Choose another one\.$"):
        glyphs.render(["W"], (path, 0), "odd.ttf", 380, False)


def test_letters_that_cannot_be_drawn(tmp_path):
    path = tmp_path / "odd.ttf"
    whole = ImageFont.load_default(16).font_bytes
    path.write_bytes(whole)
    assert glyphs.render(["Abc"], (path, 0), "odd.ttf", 32, False).min() == 0
    path.write_bytes(with_broken_outlines(whole))
    ImageFont.truetype(path, 32)  # its head says nothing of it
    with pytest.raises(Refusal, match=r"^The font odd\.ttf cannot be read \(.+\)\. Choose another one\.$") as refused:
        glyphs.render(["Abc"], (path, 0), "odd.ttf", 32, False)
    assert str(tmp_path) not in str(refused.value)
