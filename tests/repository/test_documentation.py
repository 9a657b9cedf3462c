"""Help pages and the README say what the code says."""
import json
import re
from functools import cache

import pytest

from qwen_image_2.tools.generate import help_pages
from qwen_image_2.tools.pack import ROOT

TRANSLATION = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
IDS = sorted(TRANSLATION)


@cache
def schemas() -> dict[str, dict]:
    """Every node's entry in ComfyUI's /object_info."""
    from qwen_image_2.nodes import NODES
    infos = [node.GET_NODE_INFO_V1() for node in NODES]
    return {info["name"]: info for info in infos}


def test_every_node_has_its_pages(comfyui):
    assert {path.name for path in help_pages.FOLDER.iterdir()} == set(schemas()) == set(IDS)


@pytest.mark.parametrize("language", help_pages.LANGUAGES)
@pytest.mark.parametrize("name", IDS)
def test_a_help_page_is_whole_and_up_to_date(comfyui, name, language):
    text = (help_pages.FOLDER / name / f"{language}.md").read_text(encoding="utf-8")
    assert text == help_pages.page(schemas()[name], language, TRANSLATION, text), "run python tools/dev.py make help"
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
