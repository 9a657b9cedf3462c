"""Help pages, translations and the README say what the code says."""
import json
import re
from functools import cache
from pathlib import Path

import pytest

from qwen_image_2.tools import help_pages

ROOT = Path(__file__).resolve().parents[2]
TRANSLATION = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
IDS = sorted(TRANSLATION)


@cache
def schemas() -> dict[str, dict]:
    """Every node's entry in ComfyUI's /object_info."""
    from qwen_image_2.nodes import NODES
    infos = [node.GET_NODE_INFO_V1() for node in NODES]
    return {info["name"]: info for info in infos}


def tooltips(name: str) -> dict[str, str]:
    """Tooltip of each input, and of each socket of an input that grows: ComfyUI asks for it as input_socket."""
    found = {}
    for key, (_, options, _) in help_pages.inputs_of(schemas()[name]).items():
        found[key] = options.get("tooltip", "")
    for kind in schemas()[name]["input"].values():
        for key, spec in kind.items():
            if spec[0] == help_pages.GROWING:
                found |= {f"{key}_{socket}": found[key] for socket in spec[1]["template"]["names"]}
    return found


def test_every_node_is_translated_and_nothing_else(comfyui):
    assert set(TRANSLATION) == set(schemas())
    assert {path.name for path in help_pages.FOLDER.iterdir()} == set(schemas())


@pytest.mark.parametrize("name", IDS)
def test_a_translation_has_what_the_node_has(comfyui, name):
    own, expected = TRANSLATION[name], tooltips(name)
    assert own["display_name"] and own["description"]
    assert set(own.get("inputs", {})) == set(expected)
    for key, entry in own.get("inputs", {}).items():
        assert entry["name"] and bool(entry["tooltip"]) == bool(expected[key]), key
    outputs = help_pages.outputs_of(schemas()[name])
    assert list(own.get("outputs", {})) == [str(number) for number in range(len(outputs))]
    for entry, (_, _, tooltip) in zip(own.get("outputs", {}).values(), outputs, strict=True):
        assert entry["name"] and bool(entry.get("tooltip")) == bool(tooltip)


def test_the_panels_words_are_translated_and_used(comfyui):
    from qwen_image_2.model import text_report
    scripts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "js").glob("*.js")}
    english = dict(re.findall(r'^  (\w+): "(.+)",$', scripts.pop("words.js"), re.M))
    chinese = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))["qwen_image_2"]
    fields = {key: set(re.findall(r"{\w+}", text)) for key, text in english.items()}
    assert {key: set(re.findall(r"{\w+}", text)) for key, text in chinese.items()} == fields
    verdicts = {f"verdict_{status}" for status in text_report.COLOURS}
    used = set(re.findall(r'"(\w+)"', "".join(scripts.values())))  # word("...") and choices between two
    assert verdicts <= set(english) and set(english) - verdicts <= used


def texts(value) -> list[str]:
    return [value] if isinstance(value, str) else [text for part in value.values() for text in texts(part)]


def test_translations_hold_no_syntax_of_the_page():
    """The page compiles them as messages: there { } are parameters, | separates plural forms, @ links."""
    assert not [text for text in texts(TRANSLATION) if re.search(r"[{}|@]", text)]


@pytest.mark.parametrize("language", help_pages.LANGUAGES)
@pytest.mark.parametrize("name", IDS)
def test_a_help_page_is_whole_and_up_to_date(comfyui, name, language):
    text = (help_pages.FOLDER / name / f"{language}.md").read_text(encoding="utf-8")
    assert text == help_pages.page(schemas()[name], language, TRANSLATION, text), "run python -m tools.help_pages"
    about, rest = help_pages.hand_written(text, help_pages.LANGUAGES[language])
    assert len(about) > 15 and len(re.findall(r"^## ", rest, re.M)) == 2, "what it is for, an example and hints"
    outputs = [name for name, _, _ in help_pages.outputs_of(schemas()[name])]
    for key in [*help_pages.inputs_of(schemas()[name]), *outputs]:
        assert f"`{key}`" in text


@pytest.mark.parametrize("name", IDS)
def test_a_help_page_names_only_nodes_that_exist(comfyui, name):
    """Hand-written sentences call nodes by their short English or full Chinese names."""
    ours = {schema["display_name"].removesuffix(" (Qwen-Image 2)") for schema in schemas().values()}
    chinese = {entry["display_name"].removesuffix(" (Qwen-Image 2)") for entry in TRANSLATION.values()}
    for language, pattern, known in (("en", r"\*((?:Load|Encode|Crop|Stitch|Extend|Save|Pick|Glyph|VAE) [^*]+)\*",
                                      ours | {"Load Image", "Save Image"}),
                                     ("zh", r"“([^”]+)”", chinese | CORE_IN_CHINESE)):
        text = (help_pages.FOLDER / name / f"{language}.md").read_text(encoding="utf-8")
        named = {found.removesuffix(" (Qwen-Image 2)") for found in re.findall(pattern, text)}
        assert named <= known


# Core's nodes by their Chinese names, and what else stands in such quotation marks.
CORE_IN_CHINESE = {"加载图像", "保存图像", "预览图像", "合并图像与 Alpha", "turbo", "画面", "名字: 台词", "旁白: 文字",
                   "音效: 文字", "文字与 \\<image2\\> 完全一致"}


def named_files(text: str) -> set[str]:
    """Paths that a text links to or names in code, as far as they lie in this repository."""
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    code = re.findall(r"`([^`\s<]+/[^`\s<]+\.(?:py|md|json|js))`", text)
    commands = re.findall(r"python ((?:tools|benchmarks)/\S+\.py)", text)
    return links | set(code) | set(commands)


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md"])
def test_every_file_that_a_document_names_exists(document):
    found = named_files((ROOT / document).read_text(encoding="utf-8"))
    assert document != "README.md" or len(found) > 10
    assert not [path for path in found if not (ROOT / path).exists()]


def test_every_workflow_of_the_readme_exists_and_the_other_way_round():
    section = re.search(r"^## Workflows\n(.*?)^## ", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)[1]
    named = {name for row in re.findall(r"^\| (`.+?) \|", section, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert named == {path.stem for path in (ROOT / "workflows").glob("*.json")}
