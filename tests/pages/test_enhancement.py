"""What is used of a language model's answer: recorded ones, good and bad."""
import json
import time

import pytest

from qwen_image_2.pages import enhancement
from qwen_image_2.pages.enhancement_answer import Answer, Generated, parse
from qwen_image_2.pages.quotation import literals
from qwen_image_2.pages.quotation_repair import restored

GOOD = '{"rewritten_prompt": "A long description.", "wh_ratio": "16:9"}'


def answer(text: str, truncated: bool = False) -> Answer | None:
    return parse(Generated(text, 100, truncated))


@pytest.mark.parametrize("text", [
    GOOD,
    f"The user wants a picture.\n</think>\n\n{GOOD}",
    f"<think>\nSome thoughts.\n</think>\n\n{GOOD}",
    f'A draft: {{"rewritten_prompt": "draft", "wh_ratio": "1:1"}} - no.\n</think>\n{GOOD}',
    f"```json\n{GOOD}\n```",
    f"Here it is:\n\n{GOOD}\n\nI hope {{this}} helps!",
    f'{{"rewritten_prompt": "first", "wh_ratio": "1:1"}}\n{GOOD}',
    GOOD.replace("rewritten", "rewrited"),
    GOOD.replace('"}', '", "more": {"rewritten_prompt": 7}}'),
    GOOD.replace("long ", "long\\n").replace("\\n", " "),
], ids=["plain", "thinking", "thinking with its mark", "draft in the thinking", "code fence", "prose", "two objects",
        "misspelt key", "object inside", "white space"])
def test_answers_that_are_understood(text):
    assert answer(text) == Answer("A long description.", "16:9")


@pytest.mark.parametrize(("text", "faults"), [
    (GOOD.replace('"}', '",}'), ["there was a comma too many"]),
    (GOOD[:-1], ["the last brace was missing"]),
    (f"Here:\n```json\n{GOOD[:-1]}\n```\nI hope it helps.", ["the last brace was missing"]),
    ('{"wh_ratio": "16:9", "rewritten_prompt": "A long description.",}', ["there was a comma too many"]),
    ('{"wh_ratio": "16:9", "rewritten_prompt": "A long description."', ["the last brace was missing"]),
    ('{"rewrited_prompt": "A long description.", "why": "so", "wh_ratio": "16:9",\n}', ["there was a comma too many"]),
    (f'{{"rewritten_prompt": "draft", "wh_ratio": "1:1",}}\n{{"wh_ratio": "16:9", {GOOD[1:21]} "A long description."',
     ["the last brace was missing"]),
    (f'{{"rewritten_prompt": "draft", "wh_ratio": "1:1",}}\n{GOOD[:-1]}', ["the last brace was missing"]),
])
def test_answers_that_are_nearly_json_are_mended_and_it_is_said(text, faults):
    found = answer(text)
    assert found == Answer("A long description.", "16:9") and list(found.mended) == faults
    result = enhancement.enhanced("A", Generated(text, 9, False), (64, 64), None)
    assert result.notes[0].startswith("The language model's answer was not valid JSON and was repaired")


def test_a_ratio_that_does_not_end_and_that_of_a_draft_are_not_taken():
    found = answer(f"{GOOD[:-2]}\n```")
    assert found == Answer("A long description.") and found.mended == ("one of its texts had no end",)
    assert answer(f'{GOOD[:-1]},}}\n{{"rewritten_prompt": "Blue.",}}') == Answer("Blue.")


@pytest.mark.parametrize(("inside", "read"), [
    ('a sign "OPEN" above', 'a sign "OPEN" above'), ('"OPEN" at night', '"OPEN" at night'),
    ('it says "OPEN", then "SHUT": both', 'it says "OPEN", then "SHUT": both'), ('a \\"b\\" "c"', 'a "b" "c"'),
    ('12" vinyl \\d', '12" vinyl \\d'), ('two\nlines "x"', 'two\nlines "x"')])
def test_marks_inside_the_prompt(inside, read):
    found = answer(f'{{"rewritten_prompt": "{inside}", "wh_ratio": "3:2"}}')
    assert found == Answer(read, "3:2") and "quotation marks inside a text had no backslash" in found.mended


def test_mending_is_linear():
    begin = time.process_time()
    for part in ('"rewritten_prompt": "', '" ', '", ', '"rewritten_prompt": "a" b ', '\\', '{"wh_ratio":"'):
        answer('{"rewritten_prompt": "' + part * (300_000 // len(part)))
    assert time.process_time() - begin < 20


def test_braces_marks_and_line_breaks_inside_the_prompt():
    text = '{"rewritten_prompt": "A {brace}, a \\"quoted\\" word,\na new line and }", "wh_ratio": ""}'
    assert answer(text) == Answer('A {brace}, a "quoted" word,\na new line and }')


def test_an_edit_names_the_picture_it_follows():
    text = 'x</think>{"rewritten_prompt": "Make it blue.", "wh_ratio": "", "ratio_follow": "<image2>"}'
    assert answer(text) == Answer("Make it blue.", "", "<image2>")


@pytest.mark.parametrize("text", [
    "", "A long description without any JSON.", GOOD[:30], GOOD.replace('"A', 'A'), '{"prompt": "A"}', '["A"]',
    '{"rewritten_prompt": ""}', '{"rewritten_prompt": ["A"]}', f"<think>\nA draft: {GOOD}", "</think>",
    '{"rewritten_prompt": ' * 20_000,
], ids=["empty", "prose", "cut", "broken", "other key", "list", "empty prompt", "prompt is a list",
        "thinking never ends", "nothing after the thinking", "nested without end"])
def test_answers_that_are_not(text):
    begin = time.process_time()
    assert answer(text) is None
    assert time.process_time() - begin < 2


def test_a_draft_is_no_answer_when_the_thinking_was_cut():
    """The chat template opens the thinking, so that no mark tells of it."""
    assert answer(f"Perhaps {GOOD}, or", truncated=True) is None
    assert answer(f"x</think>{GOOD} and", truncated=True) is not None


# ---------------------------------------------------------------- quotations

def test_quotations_that_survive_are_left_alone():
    rewritten = 'A shop sign reads “FRUIT” above a board with "每日新鲜".'
    assert restored('a shop "FRUIT", 写着“每日新鲜”', rewritten) == (rewritten,)


@pytest.mark.parametrize("prompt, rewritten, expected, told", [
    ('a sign "Fresh Fruit"', 'A sign says "FRESH FRUIT!" in green.', 'A sign says "Fresh Fruit" in green.',
     'had been changed to "FRESH FRUIT!"'),
    ('a sign "FRUIT"', "A sign says 'FRUIT' in green.", 'A sign says "FRUIT" in green.', "double quotation marks"),
    ('a sign "FRUIT"', "A green sign.", 'The picture shows the text "FRUIT". A green sign.', "was missing"),
    ('a sign "FRUIT"', "A green sign says FRUIT.", 'The picture shows the text "FRUIT". A green sign says FRUIT.',
     "was missing"),
    ("招牌写着“水果”", "一块绿色的招牌。", "画面中写有文字“水果”。一块绿色的招牌。", "was missing"),
    ('a sign “say "hi"”', "A sign.", 'The picture shows the text “say "hi"”. A sign.', "was missing"),
    ('a sign "FRUIT"', 'A 12" record.', 'The picture shows the text "FRUIT". A 12" record.', "was missing"),
    ('"OPEN"', 'A sign "OPEN DAILY".', 'The picture shows the text "OPEN". A sign "OPEN DAILY".', "was missing"),
    ('"!!!"', 'A sign "???".', 'The picture shows the text "!!!". A sign "???".', "was missing"),
    ('"OPEN" and "open"', 'A sign "OPEN".', 'The picture shows the text "open". A sign "OPEN".', "was missing"),
    ('"FRUIT"', "He says \"we sell 'FRUIT'\".", 'The picture shows the text "FRUIT". He says "we sell \'FRUIT\'".',
     "was missing"),
])
def test_a_quotation_that_changed_is_put_back_and_named(prompt, rewritten, expected, told):
    found, *notes = restored(prompt, rewritten)
    assert found == expected
    assert len(notes) == 1 and told in notes[0]
    assert set(literals(prompt)) <= set(literals(found))


# ---------------------------------------------------------------- canvas

def enhanced(text: str, references=(), size_class=1024, truncated=False):
    return enhancement.enhanced("a dog", Generated(text, 7, truncated), (640, 480), size_class, references)


@pytest.mark.parametrize("ratio, size_class, expected", [
    ("16:9", 2048, (2752, 1536)), ("3×2", 2048, (2528, 1696)), ("1536*1024", 2048, (2528, 1696)),
    ("3 ✕ 2", 2048, (2528, 1696)), ("3∶2", 2048, (2528, 1696)),
    ("2:3", 2048, (1696, 2528)), ("1:1", 1024, (1024, 1024)),
    (" 3：4 ", 1024, (896, 1184)), ("1.5:1", 2048, (2528, 1696)), ("21:9", 1024, (1568, 672)),
    ("", 1024, (640, 480)), ("square", 1024, (640, 480)), ("0:4", 1024, (640, 480)), ("4:0", 1024, (640, 480)),
    ("99:1", 1024, (640, 480)),
])
def test_the_proposed_ratio_gives_the_canvas(ratio, size_class, expected):
    found = enhanced(json.dumps({"rewritten_prompt": "A dog.", "wh_ratio": ratio}), size_class=size_class)
    assert (found.prompt, found.canvas) == ("A dog.", expected)
    note, = found.notes
    assert ("as set on the node" in note) == (expected == (640, 480))


def test_an_edit_keeps_the_shape_of_the_picture_it_follows():
    text = '{"rewritten_prompt": "Blue.", "wh_ratio": "", "ratio_follow": "<image2>"}'
    assert enhanced(text, [(100, 100), (300, 200)]).canvas == (1248, 832)
    assert "the shape of <image2>" in enhanced(text, [(100, 100), (300, 200)]).notes[0]


@pytest.mark.parametrize("references", [[], [(100, 100)]])
def test_a_picture_that_is_not_there_gives_no_canvas(references):
    found = enhanced('{"rewritten_prompt": "Blue.", "ratio_follow": "<image2>"}', references)
    assert found.canvas == (640, 480) and "'<image2>', which is not a canvas" in found.notes[0]


def test_numbers_in_place_of_words():
    assert enhanced('{"rewritten_prompt": "A dog.", "wh_ratio": 1.5}').canvas == (640, 480)


def test_without_an_answer_the_prompt_stays_and_the_node_says_so():
    found = enhanced("I would rather talk.")
    assert (found.prompt, found.canvas) == ("a dog", (640, 480))
    assert "The original prompt is used" in found.notes[0] and "I would rather talk." in found.notes[1]
    assert "stopped after 7 tokens" in enhanced("thinking", truncated=True).notes[0]
    assert len(enhanced("word " * 10_000).notes[1]) < 2100


# ---------------------------------------------------------------- asking

def test_the_conversation_is_the_models_own():
    assert enhancement.chat("Be good.", "a dog", 0, "<slot>", "<think>\n") == (
        "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\na dog<|im_end|>\n<|im_start|>assistant\n<think>\n")
    assert "<|im_start|>user\n<slot><slot>a<|im_end|>" in enhancement.chat("", "a", 2, "<slot>", "")


@pytest.mark.parametrize("text, words", [
    (" \n", "The prompt is empty"), ("a <|im_end|> b", "contains <|im_end|>"), ("<|image_pad|>", "Remove it"),
])
def test_prompts_that_cannot_be_asked(text, words):
    with pytest.raises(ValueError, match=words.replace("|", r"\|")):
        enhancement.check_text(text, "The prompt")


@pytest.mark.parametrize("content, words", [
    (b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe\x00", "is not a UTF-8 text file"),
    (b"word " * 60_000, "larger than 256 KiB"), ("漢".encode() * 90_000, "larger than 256 KiB"),
])
def test_files_that_are_no_system_prompt(tmp_path, content, words):
    path = tmp_path / "system_prompt.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^The system prompt mine.txt .*{words}"):
        enhancement.read_instruction(path, "mine.txt")
    path.unlink()
    with pytest.raises(ValueError, match="could not be read"):
        enhancement.read_instruction(path, "mine.txt")


def test_a_system_prompt_is_read_without_byte_order_mark(tmp_path):
    path = tmp_path / "system_prompt.txt"
    path.write_bytes("\ufeff你是 a helper.\r\n".encode())
    assert enhancement.read_instruction(path, "mine.txt") == "你是 a helper."


@pytest.mark.parametrize("task", [enhancement.TEXT_TO_IMAGE, enhancement.EDIT])
def test_the_built_in_instruction_asks_for_what_is_read(task):
    instruction = enhancement.built_in_instruction(task)
    example = answer(instruction)
    assert example.prompt == "..." and bool(example.follow) == (task is enhancement.EDIT)


@pytest.mark.parametrize("size, expected", [
    ((1024, 1024), (1024, 1024)), ((4000, 3000), (1184, 896)), ((640, 480), (640, 480)), ((100, 100), (256, 256)),
])
def test_what_the_language_model_sees_of_a_picture(size, expected):
    assert enhancement.seen_size(*size) == expected
