"""The shipped workflows against a live server's schemas, and run to a picture."""
import json

import numpy as np
import pytest
from PIL import Image

from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tools.generate import build_workflows
from qwen_image_2.tools.pack import ROOT

FOLDER = ROOT / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.fixture(scope="module")
def schemas(client):
    return client.object_info()


def ui(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def api(name):
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def inputs_of(schema):
    return {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}


def test_all_are_there_with_thumbnail_and_api_copy():
    assert {"text_to_image", "text_to_image_turbo", "poster"} <= set(NAMES)
    assert NAMES == sorted(p.stem for p in FOLDER.glob("*.jpg")) == sorted(p.stem for p in (FOLDER / "api").glob("*"))
    assert all((FOLDER / f"{name}.jpg").read_bytes()[:3] == b"\xff\xd8\xff" for name in NAMES)


def test_files_are_what_their_descriptions_give(schemas):
    for path, content in build_workflows.build(schemas).items():
        assert path.read_text(encoding="utf-8") == content, \
            f"{path} is out of date: run python tools/dev.py make workflows"


@pytest.mark.parametrize("name", NAMES)
def test_every_node_link_and_widget_fits_the_live_schema(name, schemas):
    graph = ui(name)
    nodes = {node["id"]: node for node in graph["nodes"] if node["type"] != "MarkdownNote"}
    assert len(nodes) == len(graph["nodes"]) - 1
    for node in nodes.values():
        schema = schemas[node["type"]]
        assert {entry["name"].partition(".")[0] for entry in node["inputs"]} == set(inputs_of(schema))
        assert [entry["type"] for entry in node["outputs"]] == schema["output"]
        _check_widgets(node, schema)
    for number, source, slot, target, position, kind in graph["links"]:
        assert nodes[source]["outputs"][slot]["type"] == kind
        assert kind in nodes[target]["inputs"][position]["type"].split(",")  # an input may take several types
        assert number in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][position]["link"] == number


def _check_widgets(node, schema):
    values = iter(node["widgets_values"])
    for name, (kind, *options) in inputs_of(schema).items():
        options = options[0] if options else {}
        if options.get("forceInput"):
            continue  # only a socket
        if options.get("image_upload"):
            assert (next(values), next(values)) == ("example.png", "image")
            continue
        if kind == "COMBO":
            assert next(values) in options["options"], name
        elif isinstance(kind, list):
            assert next(values) in kind, name
        elif kind in ("INT", "FLOAT"):
            assert options["min"] <= next(values) <= options["max"], name
        elif kind == "STRING":
            assert isinstance(next(values), str), name
        elif kind == "BOOLEAN":
            assert isinstance(next(values), bool), name
        if options.get("control_after_generate"):
            assert next(values) in ("fixed", "randomize")
    assert next(values, None) is None, "more values than widgets"


@pytest.mark.parametrize("name", NAMES)
def test_boxes_do_not_overlap(name):
    boxes = [(*node["pos"], *node["size"]) for node in ui(name)["nodes"]]
    for i, (x, y, w, h) in enumerate(boxes):
        for u, v, s, t in boxes[i + 1:]:
            assert x + w <= u or u + s <= x or y + h + 30 <= v or v + t + 30 <= y


@pytest.mark.parametrize("name", NAMES)
def test_links_go_to_the_right_or_down_a_column(name):
    graph = ui(name)
    boxes = {node["id"]: (*node["pos"], *node["size"]) for node in graph["nodes"]}
    for _, source, _, target, _, _ in graph["links"]:
        (x, y, width, _), (u, v, _, _) = boxes[source], boxes[target]
        assert x + width <= u or (x == u and y < v), f"node {source} to node {target}"


@pytest.mark.parametrize("name", NAMES)
def test_the_note_names_every_file(name):
    note, = (node["widgets_values"][0] for node in ui(name)["nodes"] if node["type"] == "MarkdownNote")
    assert any(node["class_type"] == "QwenImage2Loader" for node in api(name).values())
    for node in api(name).values():
        for part in ("diffusion_model", "text_encoder", "vae", "lora", "control_model"):
            if isinstance(file := node["inputs"].get(part), str):
                assert f"`{file}`" in note


@pytest.mark.parametrize("name", NAMES)
def test_a_family_s_files_are_together_and_can_be_downloaded(name):
    """The page offers what is missing, by the address that stands beside a file."""
    offered = [model for node in ui(name)["nodes"] for model in node["properties"].get("models", [])]
    one_more = name in ("qwen_image_1_lightning", "text_to_image_lora") or name.startswith("control_")
    assert len(offered) == (4 if one_more else 3)
    for model in offered:
        assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(f"/{model['name']}")
    note, = (node["widgets_values"][0] for node in ui(name)["nodes"] if node["type"] == "MarkdownNote")
    assert ("Apache-2.0" in note) == name.startswith("qwen_image_1") != ("non-commercial" in note)


SMALL = {
    "QwenImage2Layers": {"layers": 2, "steps": 2, "prompt": "A cup on a table."},
    "QwenImage2EmptyLatent": {"aspect_ratio": "custom", "width": 96, "height": 128},
    "QwenImage2EditEncode": {"resolution": "128"},
    "QwenImage2CropForEdit": {"resolution": "128"},
    "QwenImage2RepairText": {"resolution": "128", "attempts": 1},
    "QwenImage2ExtendCanvas": {"right": 40},
    "QwenImage2Upscale": {"longer_side": 0, "scale": 1.0, "preset": "Custom", "steps": 4},
}


@pytest.fixture(scope="module")
def example(client, tmp_path_factory):
    """The name of a picture with a mask painted into it."""
    path = tmp_path_factory.mktemp("example") / "example.png"
    noise = np.random.default_rng(0).integers(0, 256, (96, 120, 4), dtype=np.uint8)
    noise[..., 3] = 255
    noise[30:60, 40:80, 3] = 0
    Image.fromarray(noise, "RGBA").save(path)
    return client.upload_image(path)


TWO_FILES = ("edit_add_remove", "edit_chain", "poster_from_table")


@pytest.mark.parametrize("name", NAMES)
def test_runs_to_a_picture(name, client, example):
    """As shipped, but smaller: 2K on a test machine's CPU would take minutes."""
    graph = api(name)
    for node in graph.values():
        node["inputs"] |= SMALL.get(node["class_type"], {})
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = example
    result = client.run(graph, timeout=120)
    saves = [key for key, node in graph.items() if node["class_type"] == "SaveImage"]
    channels = 4 if name in ("edit_background_removal", "qwen_image_1_layers") else 3
    for save in saves:
        picture = here.images(client, result, save)
        one_each = name == "poster_from_table" and graph[save]["_meta"]["title"] != "Contact sheet"
        assert len(picture) == (10 if name == "slides_deck" else 3 if one_each else 1)
        assert picture.shape[3] == channels and picture.std() > 10
    assert len(saves) == (2 if "edit_depth" in name or name in TWO_FILES else 1)
    if name == "poster":
        assert picture.shape[1:3] == (128, 96)
    elif name == "edit_outpaint":
        assert picture.shape[1:3] == (96, 160)
    said = [line for lines in result.messages.values() for line in lines]
    assert not any("Turbo" in line or "made for CFG" in line or "names none" in line for line in said)


def test_the_poster_prompt_is_of_the_thousand_token_class(client):
    prompt_id, = (key for key, node in api("poster").items() if node["class_type"] == "QwenImage2TextEncode")
    graph = api("poster")
    for node in graph.values():
        if node["class_type"] == "QwenImage2EmptyLatent":
            node["inputs"] |= {"aspect_ratio": "custom", "width": 64, "height": 64}
    graph["preview"] = here.node("PreviewAny", source=[prompt_id, 2])
    tokens = int(client.run(graph).outputs["preview"]["text"][0])
    assert 700 <= tokens <= 1000


def test_template_browser_lists_them(client):
    listed = client._json("/workflow_templates")
    assert sorted(listed["qwen-image-2"]) == NAMES
