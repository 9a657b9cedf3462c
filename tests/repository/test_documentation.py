"""Help pages and guides say what the code says."""
import json
import re
from functools import cache

import pytest

from qwen_image_2.tests.repository import markdown
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
    for language, pattern, known in (("en", r"\*((?:Load|Encode|Crop|Stitch|Extend|Save|Pick|Glyph|VAE) [^*`]+)\*",
                                      ours | {"Load Image", "Save Image"}),
                                     ("zh", r"“([^”]+)”", chinese | CORE_IN_CHINESE)):
        text = (help_pages.FOLDER / name / f"{language}.md").read_text(encoding="utf-8")
        named = {found.removesuffix(" (Qwen-Image 2)") for found in re.findall(pattern, text)}
        assert named <= known


# Core's nodes by their Chinese names, and what else stands in such quotation marks.
CORE_IN_CHINESE = {"加载图像", "保存图像", "预览图像", "合并图像与 Alpha", "turbo", "画面", "名字: 台词", "旁白: 文字",
                   "音效: 文字", "文字与 \\<image2\\> 完全一致"}


def test_the_list_of_all_nodes_is_up_to_date(comfyui):
    assert help_pages.ALL_NODES.read_text(encoding="utf-8") == help_pages.all_nodes(schemas(), list(TRANSLATION)), \
        "run python tools/dev.py make help"


@pytest.mark.parametrize("document", markdown.documents())
def test_every_link_and_anchor_of_a_document_resolves(document):
    assert not markdown.broken_links(document)


@pytest.mark.parametrize("document", markdown.guides())
def test_every_file_that_a_document_names_exists(document):
    assert not [path for path in markdown.named_files(markdown.read(document)) if not markdown.exists(path)]


def test_the_documents_name_files_and_link_to_each_other():
    """What the two tests above look for is there to be found."""
    texts = [markdown.read(document) for document in markdown.guides()]
    assert len(set().union(*map(markdown.named_files, texts))) > 15
    assert len(set().union(*map(markdown.links, texts))) > 60
    assert {path.name for path in (markdown.ROOT / "docs").glob("*.md")} <= {
        link.partition("#")[0].removeprefix("docs/") for link in markdown.links(markdown.read("README.md"))}


def test_anchors_are_github_s():
    text = "# A b: `c` (d)\n```\n# no heading\n```\n## Same\n## Same\n### [Link](x.md) text, 2.x\n"
    assert markdown.anchors(text) == {"a-b-c-d", "same", "same-1", "link-text-2x"}


def test_every_workflow_is_in_the_guide_and_the_other_way_round():
    shown = re.findall(r"!\[\w+\]\(\.\./workflows/(\w+)\.jpg\)<br>`(\w+)`<br>\S", markdown.read("docs/workflows.md"))
    assert all(image == name for image, name in shown)
    names = [name for _, name in shown]
    assert sorted(names) == sorted(path.stem for path in (markdown.ROOT / "workflows").glob("*.json"))


def test_every_workflow_of_the_readme_exists():
    cells = [row.split("|")[2] for row in markdown.section("README.md", "What do you want to do?").splitlines()
             if row.count("|") == 4]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert len(named) > 10
    assert named <= {path.stem for path in (markdown.ROOT / "workflows").glob("*.json")}


MESSAGES = json.loads((markdown.ROOT / "locales" / "en" / "main.json").read_text(encoding="utf-8"))
TEMPLATES = [*MESSAGES["qwen_image_2"]["messages"].values()]
# A sentence of the command line, which is not translated.
TEMPLATES.append((markdown.ROOT / "tools" / "cli" / "repository.py").read_text(encoding="utf-8"))


def quoted_messages() -> list[str]:
    """The messages in the first column of the tables of docs/troubleshooting.md; ... stands for what differs."""
    rows = re.findall(r"^\| (.+?) \| .+ \|$", markdown.read("docs/troubleshooting.md"), re.M)
    return [found for row in rows for found in re.findall(r"\*([^*]+)\*", row)]


@pytest.mark.parametrize("message", quoted_messages())
def test_a_message_in_the_troubleshooting_guide_is_one_of_the_code(message):
    """Its fixed parts stand in this order in one template."""
    parts = [re.escape(part.strip()) for part in message.split("...") if part.strip(" ()")]
    assert [template for template in TEMPLATES if re.search(".*?".join(parts), str(template), re.S)]
