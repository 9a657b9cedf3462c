"""Texts that a user, a stranger's workflow or a language model brings: briefs, outlines, expected words, answers."""
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from qwen_image_2.model.images.boxes import Box
from qwen_image_2.model.images.references import named_references
from qwen_image_2.pages import compare, enhancement, quotation, quotation_repair, report
from qwen_image_2.pages.enhancement_answer import Generated

from . import mutation
from .attempt import Kind
from .nodes import check, prepared, run

LINES = "NIGHT MARKET\n海港夜市\nOpen 18–24 h, every day"
OUTLINE = """# The harbour at night
A short tour
Picture: a harbour at night
> Welcome everyone.

## Who works here
Layout: title top, picture left, 2 columns
- Pilots
- "Tug" crews
Seed: 7
Footer: 2026
"""
TEXTS = {"panels": 'A street.\nMia: Hello\nCaption: Night\n\nThe "harbour".\nSound: BOOM', "outline": OUTLINE,
         "data_points": "71 % | ocean | a drop\n29 % | land", "bullets": "- one\n* two\n• three",
         "palette": "deep blue, cream white, #ff8800", "picture": 'a tug boat with the name "Anna"'}


# ---------------------------------------------------------------- briefs and outlines

class PageAttack(NamedTuple):
    node: str
    inputs: dict


def inputs_of(node: type, rng: Random) -> dict:
    """Values that the schema takes, and texts of any content."""
    from comfy_api.latest import io
    found = {}
    for each in node.define_schema().inputs:
        if isinstance(each, io.Combo.Input):
            found[each.id] = rng.choice(each.options)
        elif isinstance(each, io.Int.Input):
            found[each.id] = rng.choice((each.min, each.default, rng.randint(each.min, min(each.max, 2**31))))
        elif isinstance(each, io.Boolean.Input):
            found[each.id] = rng.random() < 0.2
        else:
            found[each.id] = TEXTS.get(each.id, rng.choice((LINES, "Come!", "")))
    texts = [name for name, value in found.items() if isinstance(value, str) and name in _free_texts(node)]
    for name in rng.sample(texts, rng.randint(1, min(2, len(texts)))):
        found[name] = mutation.text(found[name], rng)
    if rng.random() < 0.1:  # of what a node checks by itself ComfyUI checks nothing but the type
        found["aspect_ratio"] = rng.choice(("custom", "5:4", "", "\ud800", "x" * 5000))
        found |= {name: rng.choice((-1, 0, 7, 64, 1000, 10**30)) for name in ("width", "height")}
    return found


def _free_texts(node: type) -> set[str]:
    from comfy_api.latest import io
    return {each.id for each in node.define_schema().inputs if isinstance(each, io.String.Input)}


def pages(*names: str) -> Callable[[Path], Kind]:
    """Nodes that write prompts: checked, then run."""
    def kind(folder: Path) -> Kind:
        from qwen_image_2.nodes import routes
        nodes = {name: prepared(routes.BRIEFS[name]) for name in names}
        routes.count_tokens("a")  # loads the tokenizer, once for all

        def attack(rng: Random) -> PageAttack:
            name = rng.choice(names)
            return PageAttack(name, inputs_of(nodes[name], rng))

        def try_it(given: PageAttack) -> list[str]:
            check(nodes[given.node], given.inputs)
            return run(nodes[given.node], **given.inputs)[1]

        return Kind(attack, try_it)
    return kind


# ---------------------------------------------------------------- words in pictures

class CheckAttack(NamedTuple):
    expected: str
    found: list[compare.Found]
    rules: compare.Rules


def text_check(folder: Path) -> Kind:
    """What a picture should say, and what was read in it; the reader itself is not asked."""
    def attack(rng: Random) -> CheckAttack:
        expected = mutation.text(LINES * rng.choice((1, 1, 20)), rng, rng.choice((200, 4000, 60_000)))
        source = expected if rng.random() < 0.5 else mutation.text(LINES, rng, 2000)
        pieces = [piece for piece in source.split("\n") if piece][:rng.choice((3, 60))]
        rules = compare.Rules(rng.random() < 0.5, rng.random() < 0.5, rng.choice((0.0, 0.2, 1.0)), rng.random() < 0.5,
                              rng.choice((None, frozenset("ABCDEFGHIKLMNOPRSTabcdef "))))
        return CheckAttack(expected, [_read(piece, number, rng) for number, piece in enumerate(pieces)], rules)

    def try_it(given: CheckAttack) -> list[str]:
        lines = compare.expected_lines(given.expected)
        found = compare.compare(lines, given.found, given.rules)
        report.mask(found, 64, 96, given.rules.allow_extra)
        report.as_json([found])
        report.failed_lines([found])
        report.rows(found)
        return [report.sentence(1, found)]

    return Kind(attack, try_it)


def _read(text: str, number: int, rng: Random) -> compare.Found:
    left, top = rng.randrange(90), rng.choice((number, rng.randrange(60)))
    return compare.Found(mutation.text(text, rng, 2000) if rng.random() < 0.3 else text,
                         Box(left, top, left + rng.randint(1, 30), top + rng.randint(1, 12)), rng.random())


# ---------------------------------------------------------------- prompts and their enhancer

PROMPT = 'A poster that says "NIGHT MARKET" and „海港“, like <image1>'
ANSWER = json.dumps({"rewritten_prompt": 'A poster with "NIGHT MARKET" above a harbour, „海港“ below.',
                     "wh_ratio": "3:2", "ratio_follow": "<image1>"}, ensure_ascii=False)


class AnswerAttack(NamedTuple):
    prompt: str
    generated: Generated
    references: tuple[tuple[int, int], ...]


def answer(folder: Path) -> Kind:
    """What a language model has made of a prompt."""
    def attack(rng: Random) -> AnswerAttack:
        how = rng.random()
        if how < 0.4:
            text = mutation.json_file(json.loads(ANSWER), rng).decode("utf-8", "replace")
        else:
            text = mutation.text(rng.choice(("", "<think>hm</think>", "```json\n")) + ANSWER, rng)
        prompt = mutation.text(PROMPT, rng, 5000) if rng.random() < 0.5 else PROMPT
        prompt += "<|im_end|>" if rng.random() < 0.1 else ""
        sides = [rng.choice((1, 64, 1000, 8192)) for _ in range(4)]
        return AnswerAttack(prompt, Generated(text, rng.randrange(30_000), rng.random() < 0.3),
                            ((sides[0], sides[1]), (sides[2], sides[3]))[:rng.randrange(3)])

    def try_it(given: AnswerAttack) -> list[str]:
        enhancement.check_text(given.prompt, "The prompt")
        found = enhancement.enhanced(given.prompt, given.generated, (1024, 1024), 1024, given.references)
        return list(found.notes)

    return Kind(attack, try_it)


def prompt(folder: Path) -> Kind:
    """What is quoted in a prompt, which references it names, and what is said of it."""
    from qwen_image_2.nodes.common.prompts import advice_on

    def attack(rng: Random) -> str:
        return mutation.text(PROMPT, rng)

    def try_it(given: str) -> list[str]:
        quotation.literals(given)
        quotation.closed_ends(given, sorted({0, len(given) // 2, len(given)}))
        quotation_repair.restored(given, PROMPT)
        quotation_repair.lost(given, PROMPT)
        named_references(given, 3)
        return [note for note in (advice_on(given),) if note]

    return Kind(attack, try_it)


def system_prompt(folder: Path) -> Kind:
    """A system_prompt.txt."""
    path = folder / "system_prompt.txt"
    whole = b"You turn a short request into a long prompt.\nAnswer with JSON.\n" * 3

    def attack(rng: Random) -> bytes:
        how = rng.random()
        if how < 0.3:
            return mutation.damaged(whole, rng)
        if how < 0.7:
            return mutation.text(whole.decode(), rng).encode("utf-8", rng.choice(("replace", "surrogatepass")))
        return rng.choice([*mutation.NO_FILES, "ä".encode("latin-1") * 9, whole * 5000, "語".encode() * 87_382,
                           "\ufeff".encode() + whole, whole.decode().encode("utf-16")])

    def try_it(given: bytes) -> list[str]:
        path.write_bytes(given)
        text = enhancement.read_instruction(path, path.name)
        enhancement.check_text(text, f"The system prompt {path.name}")
        return []

    return Kind(attack, try_it)
