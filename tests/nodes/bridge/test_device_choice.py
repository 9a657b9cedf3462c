"""Text encoder and VAE of either family on a device of the user's choice. ComfyUI's own is meta here, which computes
nothing: what runs all the same runs on the CPU."""
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from qwen_image_2.messages import Refusal
from qwen_image_2.tests import reference_1
from qwen_image_2.tests.reference import error

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")

META, PROCESSOR = torch.device("meta"), torch.device("cpu")


@pytest.fixture(scope="module")
def text_encoder_1_file(tmp_path_factory):
    import json

    from qwen_image_2.tools import tiny
    path = tmp_path_factory.mktemp("text_encoders_1") / "qwen_2.5_vl_7b.safetensors"
    config = {"text_config": tiny.TEXT_CONFIG_1, "vision_config": tiny.VISION_CONFIG_1}
    state = {name: value.contiguous() for name, value in reference_1.text_encoder().state_dict().items()}
    safetensors.torch.save_file(state, path, {"config": json.dumps(config)})
    return path


@pytest.fixture
def elsewhere(comfyui, monkeypatch):
    """ComfyUI would compute on a card, and keep there what it does not use (--gpu-only)."""
    import comfy.model_management
    for name in ("text_encoder_device", "text_encoder_offload_device", "vae_device"):
        monkeypatch.setattr(comfy.model_management, name, lambda: META)


@pytest.fixture
def second_card(comfyui, monkeypatch):
    import comfy.model_management
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: [META])
    monkeypatch.setattr(comfy.model_management, "get_torch_device_name",
                        lambda device: "cuda:1 NVIDIA RTX 3060 : cudaMallocAsync")
    # Core would bring a text encoder there at once: it was built on meta.
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda *args, **more: None)
    return "cuda:1 NVIDIA RTX 3060"


def load(kind, path, device):
    from qwen_image_2.nodes.bridge.text_encoders.families import load_text_encoder
    from qwen_image_2.nodes.bridge.vae import load_vae
    return (load_text_encoder if kind == "text encoder" else load_vae)(path, path.name, device=device)


FILES = {"text encoder": ["text_encoder_file", "text_encoder_1_file"], "vae": ["vae_file", "vae_1_file"]}


@pytest.mark.parametrize(("kind", "file"), [(kind, file) for kind, files in FILES.items() for file in files])
def test_on_the_cpu_it_computes_what_it_computes_anywhere(request, elsewhere, kind, file):
    part = load(kind, request.getfixturevalue(file), PROCESSOR)
    assert part.patcher.load_device == PROCESSOR
    if kind == "text encoder":
        assert part.patcher.offload_device == PROCESSOR
        (states, _), = part.encode_from_tokens_scheduled(part.tokenize("a red circle"))
        assert states.device == PROCESSOR and states.isfinite().all() and states.abs().max() > 0
    else:
        assert part.device == PROCESSOR
        pixels = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        found = part.decode(part.encode(pixels))
        assert found.shape[1:3] == (64, 64) and found.isfinite().all()


@pytest.mark.parametrize(("kind", "file"), [(kind, files[1]) for kind, files in FILES.items()])
def test_auto_is_comfyuis_choice(request, monkeypatch, comfyui, kind, file):
    import comfy.model_management
    path = request.getfixturevalue(file)
    assert load(kind, path, None).patcher.load_device == PROCESSOR
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda *args, **more: None)
    monkeypatch.setattr(comfy.model_management, "text_encoder_device", lambda: META)
    monkeypatch.setattr(comfy.model_management, "vae_device", lambda: META)
    assert load(kind, path, None).patcher.load_device == META


@pytest.mark.parametrize(("kind", "file"), [(kind, files[1]) for kind, files in FILES.items()])
def test_on_a_second_card_the_weights_wait_in_ram(request, comfyui, second_card, kind, file):
    from qwen_image_2.nodes.bridge import devices
    patcher = load(kind, request.getfixturevalue(file), devices.device_of(second_card)).patcher
    assert (patcher.load_device, patcher.offload_device) == (META, PROCESSOR)
    factory, arguments = patcher.cached_patcher_init
    assert factory(*arguments, disable_dynamic=True).load_device == META


def test_the_choices_name_further_cards(comfyui, second_card):
    from qwen_image_2.nodes.bridge import devices
    assert devices.choices() == ["auto", "CPU", second_card]
    assert devices.device_of("auto") is None and devices.device_of("CPU") == PROCESSOR


def test_without_a_second_card_there_are_two_choices(comfyui):
    from qwen_image_2.nodes.bridge import devices
    assert devices.choices() == ["auto", "CPU"]
    with pytest.raises(Refusal) as refused:
        devices.device_of("cuda:1 NVIDIA RTX 3060")
    assert refused.value.message.key == "device_absent" and "Set Device to auto or CPU" in str(refused.value)


def test_the_nodes_hand_it_on(comfyui, elsewhere, monkeypatch):
    """The combined loader to both parts; each part says where it runs."""
    from qwen_image_2.nodes import loaders
    from qwen_image_2.nodes.bridge.files import miniature
    for node in (loaders.QwenImage2Loader, loaders.QwenImage2LoadTextEncoder, loaders.QwenImage2LoadVAE):
        last = node.define_schema().inputs[-1]
        assert (last.id, last.optional, last.default, last.options) == ("device", True, "auto", ["auto", "CPU"])
    expanded = loaders.QwenImage2Loader.execute(*[miniature.NAME] * 3, "auto", "as stored", device="CPU").expand
    given = {entry["class_type"]: entry["inputs"].get("device") for entry in expanded.values()}
    assert given == {"QwenImage2LoadModel": None, "QwenImage2LoadTextEncoder": "CPU", "QwenImage2LoadVAE": "CPU"}
    told = []
    monkeypatch.setattr(loaders, "notify", lambda node, *sentences: told.extend(map(str, filter(None, sentences))))
    for node in (loaders.QwenImage2LoadTextEncoder, loaders.QwenImage2LoadVAE):
        monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="1"))
    clip, = loaders.QwenImage2LoadTextEncoder.execute(miniature.NAME, "as stored", device="CPU").args
    vae, = loaders.QwenImage2LoadVAE.execute(miniature.NAME, device="CPU").args
    assert clip.patcher.load_device == vae.patcher.load_device == PROCESSOR
    assert sum("runs on CPU." in sentence for sentence in told) == 2


def test_both_devices_compute_the_same(vae_1, vae_1_file):
    pixels = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    assert error(load("vae", vae_1_file, PROCESSOR).encode(pixels), vae_1.encode(pixels)) < 1e-5
