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
