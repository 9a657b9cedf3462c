"""GGUF text encoders through a running server: prompts, edits with references, and what is said without a projector."""
import shutil
from pathlib import Path

import pytest
import torch

from qwen_image_2.tests.nodes.bridge.text_encoders import test_gguf as written
from qwen_image_2.tests.reference import error
from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import Graph
from qwen_image_2.tests.server.test_edit import edit_nodes, pictures
from qwen_image_2.tools.comfyui.client import WorkflowError

EXACT = "gguf/Qwen3VL-8B-Instruct-F32.gguf"
PACKED = "gguf/Qwen3VL-8B-Instruct-Q8_0.gguf"
PROJECTOR = "gguf/mmproj-Qwen3VL-8B-Instruct-F32.gguf"


@pytest.fixture(scope="module", autouse=True)
def files(models, reference):
    folder = models / "text_encoders"
    (folder / "gguf").mkdir()
    state = reference.text_encoder.state_dict()
    written.write_language(folder / EXACT, state, lambda name: "F32")
    written.write_language(folder / PACKED, state, lambda name: "Q8_0")
    written.write_projector(folder / PROJECTOR, state)
    yield
    shutil.rmtree(folder / "gguf")  # other files look at the menus, too


def edit(client, tmp_path, **loader) -> torch.Tensor:
    nodes = edit_nodes(client, tmp_path, pictures([((104, 64), "RGB")]))
    nodes["loader"]["inputs"] |= loader
    return here.latent(client, client.run(nodes))


def test_the_menus_tell_text_encoders_from_projectors(client):
    for name in ("QwenImage2Loader", "QwenImage2LoadTextEncoder"):
        schema = client.object_info()[name]["input"]
        offered = schema["required"]["text_encoder"][1]["options"]
        assert {EXACT, PACKED} <= set(offered) and PROJECTOR not in offered
        assert schema["optional"]["vision_projector"][1]["options"] == ["auto", "none", PROJECTOR]


def test_prompts_and_edits_are_those_of_the_safetensors_file(client, tmp_path):
    plain = here.latent(client, client.run(Graph().nodes()))
    result = client.run(Graph(text_encoder=EXACT).nodes())
    assert error(here.latent(client, result), plain) < 1e-4
    expected = edit(client, tmp_path)
    for choice in ("auto", PROJECTOR):
        assert error(edit(client, tmp_path, text_encoder=EXACT, vision_projector=choice), expected) < 1e-4


def test_packed_files_draw_and_the_loader_says_how(client, tmp_path):
    result = client.run(Graph(text_encoder=PACKED, variant="turbo").nodes())  # no part is in ComfyUI's cache
    plain = here.latent(client, client.run(Graph().nodes()))
    assert 1e-5 < error(here.latent(client, result), plain) < 0.1
    said = " ".join(line for lines in result.messages.values() for line in lines)
    assert f"{PACKED} with mmproj-Qwen3VL-8B-Instruct-F32.gguf: 3 layers of width 64" in said
    assert "GGUF Q8_0, dequantized layer by layer." in said
    assert f"{here.FUSED}: turbo model" in said


def test_without_a_projector_prompts_work_and_edits_are_refused(client, tmp_path):
    nodes = Graph(text_encoder=EXACT).nodes()
    nodes["loader"]["inputs"]["vision_projector"] = "none"
    result = client.run(nodes)
    said = " ".join(line for lines in result.messages.values() for line in lines)
    assert "No vision projector loaded: text prompts work, reference images do not." in said
    with pytest.raises(WorkflowError, match="without its vision projector, so it cannot read references. Put the mm"):
        edit(client, tmp_path, text_encoder=EXACT, vision_projector="none")


@pytest.fixture
def alone(models):
    """A folder that has the file, and no projector; the others' menus do not show it."""
    folder = models / "text_encoders" / "alone"
    folder.mkdir()
    (folder / Path(EXACT).name).symlink_to(models / "text_encoders" / EXACT)
    yield folder
    shutil.rmtree(folder)


def test_a_projector_that_is_put_beside_the_file_is_found(client, models, tmp_path, alone):
    """As the refusal says to do, without a restart."""
    chosen = f"alone/{Path(EXACT).name}"
    with pytest.raises(WorkflowError, match="without its vision projector"):
        edit(client, tmp_path, text_encoder=chosen)
    (alone / "mmproj-F32.gguf").symlink_to(models / "text_encoders" / PROJECTOR)
    assert error(edit(client, tmp_path, text_encoder=chosen), edit(client, tmp_path)) < 1e-4


def test_a_projector_for_a_safetensors_file_is_refused(client, tmp_path):
    with pytest.raises(WorkflowError, match=f"{here.TEXT_ENCODER} contains its vision tower. Set Vision projec"):
        edit(client, tmp_path, vision_projector=PROJECTOR)
