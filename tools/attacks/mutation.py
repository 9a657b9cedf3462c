"""What is done to a valid input so that it is none any more, or an odd one."""
import json
from random import Random

# Values that a JSON file, a header or a request may hold where something else is expected.
JUNK = [None, True, -1, 0, 5, 10**40, 1e300, float("nan"), float("inf"), "x", "9" * 5000, [], [1], ["x"], [[1, 2]], {},
        {"a": 1}, [0.5] * 3, [-2, 20, 14], "\ud800", "\x00", "a" * 100_000, [None] * 5000, {"": {"": []}}, -1e-320]
# Bytes that stand where a file was expected.
NO_FILES = [b"", b"\0", b"\0" * 8, b"\xff" * 64, b"<!DOCTYPE html><html><body>403 Forbidden</body></html>" * 3,
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", b"\xef\xbb\xbf{}", b"GGUF",
            b"[" * 100_000, b'{"a":' * 50_000, b"PK\x03\x04" + bytes(200), b'"' + b"\\" * 10_000]
# Pieces of text: marks of the pack's own languages, characters that print nothing, and what is costly to look for.
PIECES = ["\n", "\n\n", "# ", "## ", "- ", "> ", "Picture: ", "Layout: ", "Seed: ", "Footer: ",
          "Caption: ", "Ann: ", "|", '"', "“", "”", "„", "「", "」", "『", "'", "```", "<|im_end|>",
          "<|image_pad|>", "<image1>", "<image99999>", "</think>", "<think>", '{"rewritten_prompt": "',
          '"}', "{", "}", "[", "]", "%", "%date:yyyy-MM-dd%", "%Node.x%", "\\", "/", "..", "\x00",
          "\x1b[31m", "\r", "\t", "\u200b", "\u200d", "\u202e", "\ufeff", "\ud800", "\udfff", "\u2028",
          "\ufffe", "e\u0301\u0301\u0301", "👩\u200d👩\u200d👧", "ﷺ", "İ", "ß", "１２", "مرحبا", "漢字かな",
          "🇩🇪", " ", "  ", ".", "...", "12\" record", "16:9", "9" * 400, "2 columns", "title top", "{}",
          "{0}", "{file}", "%s", "&lt;", "<b>", "![](", "---"]


def changed(value, rng: Random):
    """The same JSON with something else in one place."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        copy = value.copy()
        place = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        copy[place] = changed(value[place], rng)
        return copy
    return rng.choice(JUNK)


def without_one(value, rng: Random):
    """The same JSON with an entry less, or under another name, somewhere."""
    if not isinstance(value, dict) or not value:
        return changed(value, rng)
    copy, name = value.copy(), rng.choice(list(value))
    inner = copy.pop(name)
    if isinstance(inner, dict) and rng.random() < 0.5:
        return copy | {name: without_one(inner, rng)}
    return copy if rng.random() < 0.5 else copy | {rng.choice(["", "x" * 5000, "a.b", "\ud800", name.upper()]): inner}


def json_file(value, rng: Random) -> bytes:
    """This JSON as a file: changed as JSON, or as bytes, or no JSON at all."""
    how = rng.random()
    if how < 0.1:
        return rng.choice(NO_FILES)
    if how < 0.3:
        return damaged(json.dumps(value).encode(), rng)
    return json.dumps((changed if how < 0.8 else without_one)(value, rng)).encode()


def one_byte(content: bytes, rng: Random, first: int = 0, last: int | None = None) -> bytes:
    """One byte between the places is another one: what follows stays where it is, and is read."""
    place = rng.randrange(first, min(last or len(content), len(content)))
    other = rng.choice((0, 1, 255, rng.randrange(256), content[place] ^ 1))
    return content[:place] + bytes([other]) + content[place + 1:]


def damaged(content: bytes, rng: Random, first: int = 0, last: int | None = None) -> bytes:
    """Some bytes between the places changed, doubled or gone."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(first, max(first + 1, min(last or len(content), len(content))))
        how = rng.random()
        if how < 0.7 and place < len(content):
            content[place] = rng.choice((rng.randrange(256), content[place] ^ 1 << rng.randrange(8), ord("0")))
        elif how < 0.85:
            content[place:place] = content[place:place + rng.randint(1, 9)]
        else:
            del content[place:place + rng.randint(1, 9)]
    return bytes(content)


def text(base: str, rng: Random, longest: int = 40_000) -> str:
    """The text with pieces put in, parts repeated, moved or gone; `longest`: about its most characters."""
    for _ in range(rng.randint(1, 8)):
        begin = rng.randrange(len(base) + 1)
        end = min(len(base), begin + rng.choice((1, 3, 10, 100)))
        how = rng.random()
        if how < 0.5:
            base = base[:begin] + rng.choice(PIECES) + base[begin:]
        elif how < 0.6:
            base = base[:begin] + rng.choice(PIECES) * rng.choice((2, 10, 300, 5000)) + base[begin:]
        elif how < 0.7:
            base = base[:begin] + base[begin:end] * rng.choice((2, 20, 1000)) + base[end:]
        elif how < 0.8:
            base = base[:begin] + base[end:]
        elif how < 0.9:
            base = base[end:] + base[:begin]
        else:
            base = base[:begin] + "".join(chr(rng.choice((rng.randrange(0x300), rng.randrange(0x110000))))
                                          for _ in range(rng.randint(1, 20))) + base[begin:]
    return base[:longest]
