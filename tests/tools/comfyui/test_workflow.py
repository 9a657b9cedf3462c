"""Workflow files of the command line: --set, and the refusal of files that are something else."""

import json

import pytest

from qwen_image_2.tools.cli.errors import UserError
from qwen_image_2.tools.comfyui import pictures, workflow

GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "color": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}, "_meta": {"title": "Save v1.0"}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "b"}},
    "4": {"class_type": "QwenImage2Sampler", "inputs": {"seed": 0}, "_meta": {"title": "Sampler (Qwen-Image 2)"}},
    "5": {"class_type": "QwenImage2TextEncode", "inputs": {"prompt": "a"}, "_meta": {"title": "VAE Decode"}},
    "6": {"class_type": "QwenImage2VAEDecode", "inputs": {"tile": 1}, "_meta": {"title": "VAE Decode (Qwen-Image 2)"}},
    "57:8": {"class_type": "QwenImage2EditEncode", "inputs": {"images.image_1": ["1", 0], "prompt": "a"}},
}


@pytest.mark.parametrize("assignment, node, name, value", [
    ("1.width=128", "1", "width", 128),
    ("EmptyImage.width=128", "1", "width", 128),
    ("Save v1.0.images=x", "2", "images", "x"),
    ("SaveImage.filename_prefix=c", "3", "filename_prefix", "c"),
    ("57:8.images.image_1=[\"2\", 0]", "57:8", "images.image_1", ["2", 0]),
    ("57:8.prompt=a=b, c", "57:8", "prompt", "a=b, c"),
    ("57:8.prompt=", "57:8", "prompt", ""),
    ("57:8.prompt=\"5\"", "57:8", "prompt", "5"),
    ("57:8.prompt=5", "57:8", "prompt", "5"),
    ("57:8.prompt=[\"1\", 0]", "57:8", "prompt", ["1", 0]),
    ("1.width=NaN", "1", "width", "NaN"),
    ("Sampler.seed=7", "4", "seed", 7),
    ("QwenImage2Sampler.seed=7", "4", "seed", 7),
    ("Sampler (Qwen-Image 2).seed=7", "4", "seed", 7),
    ("EditEncode.prompt=b", "57:8", "prompt", "b"),
    ("VAE Decode.prompt=b", "5", "prompt", "b"),
    ("VAEDecode.tile=2", "6", "tile", 2),
    ("1.color=true", "1", "color", True),
])  # fmt: skip
def test_set_changes_one_input(assignment, node, name, value):
    changed = workflow.apply(GRAPH, [assignment])
    assert workflow.changed(GRAPH, [assignment]) == {(node, name)}
    assert changed[node]["inputs"][name] == value
    changed[node]["inputs"][name] = GRAPH[node]["inputs"][name]
    assert changed == GRAPH, "the rest stays, and so does the original"


@pytest.mark.parametrize("assignment, sentence", [
    ("9.width=1", r"no node '9'; the workflow has 1 \(EmptyImage\), 2 \(SaveImage, \"Save v1.0\"\)"),
    ("1.height=1", r"node 1 \(EmptyImage\) has no input 'height'; it has width, color"),
    ("Smpler.seed=1", r"no node 'Smpler'; the workflow has .* 4 \(QwenImage2Sampler"),
    ("SaveImage.images=1", r"several nodes fit \(2 .*, 3 .*\)"),
    ("width=1", "expected NODE.INPUT=VALUE"),
    ("1.width", "expected NODE.INPUT=VALUE"),
])  # fmt: skip
def test_set_that_fits_nothing_names_what_is_there(assignment, sentence):
    with pytest.raises(UserError, match=sentence):
        workflow.apply(GRAPH, [assignment])


def test_api_format_is_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(GRAPH))
    assert workflow.load(tmp_path / "a.json") == GRAPH


@pytest.mark.parametrize("content, sentence", [
    (json.dumps({"nodes": [], "links": [], "version": 0.4}), "needs the API format.*workflows/api/"),
    (json.dumps({"1": {"inputs": {}}}), "not a workflow in API format"),
    ("[]", "not a workflow in API format"),
    ("{}", "not a workflow in API format"),
    ("{", "not a JSON file"),
    ("[" * 100_000, "not a JSON file"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, content, sentence):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        workflow.load(tmp_path / "a.json")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        workflow.load(tmp_path / "a.json")


def test_core_s_nodes_are_not_ours_however_their_ids_begin():
    graph = {"1": {"class_type": "QwenImage21Cache", "inputs": {"strength": 1.0}}}
    assert not workflow.uses_pack(graph) and workflow.uses_pack({**GRAPH, **graph})
    assert workflow.find_nodes(graph, "QwenImage21Cache") == ["1"] and not workflow.find_nodes(graph, "1Cache")


def test_only_graphs_with_model_files_need_models():
    assert not workflow.needs_models(GRAPH)
    loader = {"class_type": "VAELoader", "inputs": {"vae_name": "a.safetensors"}}
    assert workflow.needs_models({**GRAPH, "9": loader})


@pytest.mark.parametrize("node_class, stage", [
    ("QwenImage2Loader", "load"), ("QwenImage2LoadVAE", "load"), ("QwenImage2TextEncode", "encode"),
    ("QwenImage2VAEEncode", "encode"), ("KSampler", "sample"), ("QwenImage2Sampler", "sample"),
    ("QwenImage2VAEDecode", "decode"), ("SaveImage", "save"), ("QwenImage2EmptyLatent", "other"),
])  # fmt: skip
def test_stages_of_node_classes(node_class, stage):
    assert workflow.stage(node_class) == stage


@pytest.mark.parametrize("meta", [5, [], {"title": 5}, {"title": None}, {"title": ["a"]}], ids=repr)
def test_a_title_that_is_no_text_names_nothing(meta):
    graph = {"1": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}, "_meta": meta}}
    assert workflow.describe(graph, "1") == "1 (SaveImage)"
    assert workflow.find_nodes(graph, "SaveImage") == ["1"] and not workflow.find_nodes(graph, "5")


def test_a_value_with_brackets_without_end_is_text():
    assert workflow.parse_value("[" * 100_000, 5) == "[" * 100_000


def test_a_picture_whose_name_is_longer_than_any_is_not_there():
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "a" * 5000}}}
    with pytest.raises(UserError, match="there is no picture file"):
        pictures.check(graph, {("1", "image")})


CANVAS = {"aspect_ratio": "3:4", "size": "2048", "width": 1024, "height": 1024, "batch_size": 2}


@pytest.mark.parametrize("canvas, size", [
    ({}, (96, 160)), ({"aspect_ratio": "1:1"}, (128, 128)), ({"aspect_ratio": "16:9"}, (160, 96)),
    ({"aspect_ratio": "custom", "width": 640, "height": 320}, (160, 96)),
    ({"aspect_ratio": ["1", 0]}, (128, 128)), ({"aspect_ratio": "custom", "width": ["1", 0]}, (128, 128)),
    ({"aspect_ratio": "0:1"}, (128, 128)), ({"aspect_ratio": "1:-1"}, (128, 128)),
    ({"aspect_ratio": "inf:1"}, (128, 128)), ({"aspect_ratio": "1e-300:1e300"}, (96, 160)),
    ({"aspect_ratio": "custom", "width": 10**400}, (128, 128))])
def test_the_miniature_draws_at_the_nearest_size_that_it_knows(canvas, size):
    graph = {"1": {"class_type": "QwenImage2EmptyLatent", "inputs": CANVAS | canvas}}
    changed = workflow.with_miniature(graph)["1"]["inputs"]
    assert (changed["aspect_ratio"], changed["width"], changed["height"]) == ("custom", *size)
    assert changed["batch_size"] == 2
    assert graph["1"]["inputs"] == CANVAS | canvas  # the file's own graph stays


def test_a_canvas_without_a_size_is_a_square():
    graph = {"1": {"class_type": "QwenImage2EmptyLatent", "inputs": {}},
             "2": {"class_type": "QwenImage2EmptyLatent", "inputs": {"aspect_ratio": "custom"}}}
    assert {entry["inputs"]["width"] for entry in workflow.with_miniature(graph).values()} == {128}


@pytest.mark.parametrize("loader, inputs", [
    ("QwenImage2Loader", {"diffusion_model", "text_encoder", "vae"}), ("QwenImage2LoadModel", {"diffusion_model"}),
    ("QwenImage2LoadTextEncoder", {"text_encoder"}), ("QwenImage2LoadVAE", {"vae"})])
def test_every_loader_can_take_the_miniature(loader, inputs):
    graph = {"1": {"class_type": loader, "inputs": dict.fromkeys(inputs, "a.safetensors") | {"variant": "auto"}},
             "2": {"class_type": "QwenImage2EditEncode", "inputs": {"resolution": "1024"}},
             "3": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux.safetensors"}}}
    changed = workflow.with_miniature(graph)
    assert changed["1"]["inputs"] == dict.fromkeys(inputs, "miniature") | {"variant": "auto"}
    assert changed["2"]["inputs"]["resolution"] == "128"
    assert changed["3"] == graph["3"]
