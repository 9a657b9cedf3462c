"""What core's own nodes save of the pack's MODEL, CLIP, VAE and latents: it loads again as it was, or is refused."""
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from qwen_image_2.messages import MAX_LENGTH, Refusal
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.tests.nodes.bridge.quant import test_formats as files
from qwen_image_2.tests.nodes.bridge.quant import test_gguf_ops as gguf_files
from qwen_image_2.tests.nodes.bridge.runtime import runs
from qwen_image_2.tests.nodes.bridge.text_encoders import test_gguf as gguf_text_files
from qwen_image_2.tests.nodes.bridge.text_encoders import test_quantized as text_files
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

MATRICES = ("img_in.weight", "transformer_blocks.0.attn.to_q.weight", "transformer_blocks.1.img_mlp.gate_up.weight")
ENHANCER_CONFIG = {"text_config": tiny.ENHANCER_TEXT_CONFIG, "vision_config": tiny.ENHANCER_VISION_CONFIG}
TEXT_MATRIX = "qwen3vl_8b.transformer.model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(autouse=True)
def as_comfyui_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture
def output(comfyui, tmp_path):
    """ComfyUI's output folder."""
    import folder_paths
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    yield tmp_path / "output"
    folder_paths.set_output_directory(before)


def saved(output, node: str, **objects):
    """The file that a node of core writes."""
    from comfy_extras import nodes_model_merging as core
    getattr(core, node)().save(filename_prefix=node, prompt={"1": {}}, extra_pnginfo={"workflow": {}}, **objects)
    return written(output, node)


def written(output, prefix: str):
    path, = output.glob(f"{prefix}*")
    return path


# ---------------------------------------------------------------- the objects

@pytest.fixture(scope="module")
def plain():
    return tiny.randomise(tiny.shapes(Transformer(files.SPEC)), 5)


def load(path, weight_format="as stored"):
    from qwen_image_2.nodes.bridge.loading import load_model
    return load_model(path, path.name, "base", weight_format)


def load_clip(path, weight_format="as stored"):
    from qwen_image_2.nodes.bridge.text_encoders.families import load_text_encoder
    return load_text_encoder(path, path.name, weight_format)


def load_enhancer(path):
    from qwen_image_2.nodes.bridge.text_encoders import qwen3_5
    return qwen3_5.load_enhancer(path, path.name)


def load_vae(path):
    from qwen_image_2.nodes.bridge.vae import load_vae
    return load_vae(path, path.name)


def model_of(folder, plain, name: str):
    """A MODEL of a file in this format, or of a plain file with this weight_format."""
    if name in files.FORMATS:
        return load(files.write(files.quantize(plain, name)[0], folder / "model.safetensors"))
    return load(files.write(plain, folder / "model.safetensors"), name)


def clip_of(folder, reference, name: str):
    state, path = reference.text_encoder.state_dict(), folder / "clip.safetensors"
    if name in text_files.FORMATS:
        return load_clip(text_files.write(text_files.quantize(state, name)[0], path))
    return load_clip(text_files.write(state, path), name)


def velocity(patcher) -> torch.Tensor:
    """As ComfyUI computes it: LoRAs are in the weights."""
    import comfy.model_management
    comfy.model_management.load_models_gpu([patcher])
    return files.velocity(patcher.model.diffusion_model)


def states(clip, images: bool = True) -> torch.Tensor:
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    (text, _), = clip.encode_from_tokens_scheduled(clip.tokenize(
        "a red circle", images=[image] if images else [], keep_vision=True))
    return text


def with_lora(patcher, magnitudes: bool = False):
    """A LoRA, or a DoRA, on three matrices."""
    from qwen_image_2.nodes.bridge.adapters.dora import Decomposed
    clone = runs.with_lora(patcher, *MATRICES)
    for patches in clone.patches.values() if magnitudes else ():
        strength, adapter, *rest = patches[0]
        magnitude = torch.linspace(0.5, 2, len(adapter.weights[0]))[:, None]
        patches[0] = (strength, Decomposed(set(), (adapter, magnitude)), *rest)
    return clone


def assert_same_model(found, wanted) -> None:
    files.assert_same_tensors(found.model.diffusion_model.state_dict(), wanted.model.diffusion_model.state_dict())
    assert (found.model.weights, found.model.spec) == (wanted.model.weights, wanted.model.spec)


def assert_same_clip(found, wanted) -> None:
    files.assert_same_tensors(found.cond_stage_model.state_dict(), wanted.cond_stage_model.state_dict())
    specs = [next(m.spec for m in clip.cond_stage_model.modules() if hasattr(m, "spec")) for clip in (found, wanted)]
    assert specs[0] == specs[1]


def assert_same_vae(found, wanted) -> None:
    files.assert_same_tensors(found.first_stage_model.state_dict(), wanted.first_stage_model.state_dict())
    assert found.first_stage_model.spec == wanted.first_stage_model.spec


# ---------------------------------------------------------------- ModelSave

@pytest.mark.parametrize("name", ["as stored", "bf16", *files.FORMATS])
def test_a_model_of_every_format(output, tmp_path, plain, name):
    model = model_of(tmp_path, plain, name)
    again = load(saved(output, "ModelSave", model=model))
    assert_same_model(again, model)
    if name != "bf16":  # which this device computes in another dtype than the file's
        assert error(velocity(again), velocity(model)) < files.rounding(name)


@pytest.mark.parametrize("name", ["as stored", "int8 ConvRot", "nvfp4"])
@pytest.mark.parametrize("magnitudes", [False, True], ids=["LoRA", "DoRA"])
def test_loras_are_in_the_file(output, tmp_path, plain, name, magnitudes):
    model = model_of(tmp_path, plain, name)
    without, changed = velocity(model), with_lora(model, magnitudes)
    again = load(saved(output, "ModelSave", model=changed))
    assert error(velocity(again), velocity(changed)) < files.rounding(name) < error(velocity(again), without)


def test_a_model_that_streams(output):
    """Of the miniature's eight blocks three stay on the device; those that pass have been bound to buffers before. The
    file is the one of the model that does not stream."""
    import comfy.model_management

    from qwen_image_2.nodes.bridge.files import folders, miniature
    from qwen_image_2.nodes.bridge.runtime.budget import BudgetPatcher
    path = folders.resolve(folders.TRANSFORMER, miniature.NAME)
    whole, changed = (runs.with_lora(load(path), *runs.LORA) for _ in range(2))
    streaming = BudgetPatcher.of(changed, runs.budget_for(changed, 3))
    runs.sample(streaming, 1)
    again = load(saved(output, "ModelSave", model=streaming))
    assert len(streaming.plan.streamed) == 5
    comfy.model_management.load_models_gpu([whole])
    assert_same_model(again, whole)


def test_a_merged_model(output, tmp_path, plain):
    from comfy_extras.nodes_model_merging import ModelMergeSimple
    model = model_of(tmp_path, plain, "as stored")
    merged, = ModelMergeSimple().merge(model, with_lora(model), 0.5)
    path = saved(output, "ModelSave", model=merged)
    assert error(velocity(load(path)), velocity(merged)) < 1e-6 < 1e-3 < error(velocity(merged), velocity(model))


# ---------------------------------------------------------------- CLIPSave, VAESave

@pytest.mark.parametrize("name", ["as stored", "int8 ConvRot", "fp8"])
def test_a_text_encoder(output, tmp_path, reference, clip, name):
    clip = clip if name == "as stored" else clip_of(tmp_path, reference, name)
    again = load_clip(saved(output, "CLIPSave", clip=clip))
    assert_same_clip(again, clip)
    assert error(states(again), states(clip)) < 1e-6


def text_lora(clip, *shapes):
    """A clone with a LoRA of these shapes on one matrix."""
    from comfy.weight_adapter import LoRAAdapter
    clone, generator = clip.clone(), torch.Generator().manual_seed(8)
    up, down = (torch.randn(shape, generator=generator) for shape in shapes)
    clone.add_patches({TEXT_MATRIX: LoRAAdapter(set(), (up, down, None, None, None, None))})
    return clone


def test_a_text_encoder_with_a_lora(output, clip):
    changed = text_lora(clip, (64, 4), (4, 64))
    without, again = states(clip), load_clip(saved(output, "CLIPSave", clip=changed))
    assert error(states(again), states(changed)) < 1e-6 < 1e-2 < error(states(again), without)


def test_a_text_encoder_without_eyes(output, tmp_path, reference):
    """From a GGUF file without its projector. Nothing but the configuration tells it from other language models."""
    path = gguf_text_files.write_language(tmp_path / "clip.gguf", reference.text_encoder.state_dict(), lambda _: "Q8_0")
    clip = load_clip(path, "bf16")
    again = load_clip(saved(output, "CLIPSave", clip=clip.clone()))
    assert_same_clip(again, clip)
    assert error(states(again, images=False), states(clip, images=False)) < 1e-6


def test_an_enhancer(output, tmp_path):
    state = {name: value.bfloat16() for name, value in tiny.randomise(tiny.enhancer_state(), 4).items()}
    state, _ = tiny.quantized(lambda name: "mlp" in name and "language_model" in name, state, "int8_tensorwise", {},
                              {"per_channel": True})
    tiny.save_as_they_are(state, tmp_path / "enhancer.safetensors", {"config": json.dumps(ENHANCER_CONFIG)})
    clip = load_enhancer(tmp_path / "enhancer.safetensors")
    assert_same_clip(load_enhancer(saved(output, "CLIPSave", clip=clip)), clip)


def vae_of(folder, reference, config: dict):
    tiny.save_as_they_are(tiny.to_wan_vae(reference.vae.state_dict()), folder / "vae.safetensors",
                          {"config": json.dumps(config)})
    return load_vae(folder / "vae.safetensors")


@pytest.mark.parametrize("config", [{}, {"latents_mean": [0.25] * 64}], ids=["published scale", "another scale"])
def test_a_vae(output, tmp_path, reference, config):
    vae = vae_of(tmp_path, reference, config)
    again = load_vae(saved(output, "VAESave", vae=vae.with_peak(1 << 30)))
    assert_same_vae(again, vae)
    latent = torch.randn(1, 64, 2, 4)
    assert error(again.decode(latent), vae.decode(latent)) < 1e-6


# ---------------------------------------------------------------- several in one file

@pytest.mark.parametrize("model_format, clip_format", [("as stored", "bf16"), ("int8 ConvRot", "int8 ConvRot")])
def test_a_whole_checkpoint(output, tmp_path, plain, reference, model_format, clip_format):
    """Each loader finds its own part, in its own dtype."""
    model, clip = model_of(tmp_path, plain, model_format), clip_of(tmp_path, reference, clip_format)
    vae = vae_of(tmp_path, reference, {})
    path = saved(output, "CheckpointSave", model=model, clip=clip, vae=vae)
    assert_same_model(load(path), model)
    assert_same_clip(load_clip(path), clip)
    assert_same_vae(load_vae(path), vae)


def test_a_checkpoint_of_an_image_to_video_model(output, tmp_path, plain, reference):
    """Core's node for those takes every MODEL and VAE, with a vision model that is not ours."""
    from comfy_extras.nodes_video_model import ImageOnlyCheckpointSave
    model, vae = model_of(tmp_path, plain, "bf16"), vae_of(tmp_path, reference, {})
    vision = SimpleNamespace(get_sd=lambda: {"vision_model.embeddings.class_embedding": torch.zeros(8)})
    ImageOnlyCheckpointSave().save(model, vision, vae, "image_only")
    path = written(output, "image_only")
    assert_same_model(load(path), model)
    assert_same_vae(load_vae(path), vae)


def test_what_sizes_cannot_tell_is_in_the_file(output, tmp_path, plain, reference, clip):
    """Core's nodes write no configuration: without it the model would take its prefix for one that stays."""
    tiny.save_as_they_are(plain, tmp_path / "model.safetensors",
                          {"config": json.dumps({"causal_condition": False})})
    model, vae = load(tmp_path / "model.safetensors"), vae_of(tmp_path, reference, {"latents_mean": [0.25] * 64})
    assert not load(saved(output, "ModelSave", model=model)).model.spec.causal_condition
    path = saved(output, "CheckpointSave", model=model, clip=clip, vae=vae)
    assert_same_model(load(path), model)
    assert_same_clip(load_clip(path), clip)
    assert_same_vae(load_vae(path), vae)


def test_what_sizes_tell_is_not_written(output, tmp_path, plain):
    """Other programs read these files too."""
    tiny.save_as_they_are(plain, tmp_path / "model.safetensors",
                          {"config": json.dumps({"causal_condition": True})})
    names = load_file(saved(output, "ModelSave", model=load(tmp_path / "model.safetensors")))
    assert set(names) == {f"model.diffusion_model.{name}" for name in plain}


@pytest.mark.parametrize("value, words", [(torch.zeros(4), "is not a valid configuration"),
                                          (torch.zeros(4, dtype=torch.uint8), "The configuration inside")])
def test_a_configuration_that_is_none(comfyui, tmp_path, plain, value, words):
    path = tmp_path / "model.safetensors"
    tiny.save_as_they_are(plain | {"qwen_image_2_config": value}, path)
    with pytest.raises(CheckpointError, match=words):
        load(path)


# ---------------------------------------------------------------- what is refused

def refusal(output, node: str, **objects) -> str:
    with pytest.raises(Refusal) as raised:
        saved(output, node, **objects)
    assert not [path for path in output.rglob("*") if path.is_file()] and len(str(raised.value)) <= MAX_LENGTH
    return str(raised.value)


def test_ggufs_blocks_are_refused(output, tmp_path, plain, reference):
    """Core would mark them without the type that they have: a file that nothing can read."""
    model = load(gguf_files.write(tmp_path / "model.gguf", plain, "Q4_K"))
    path = gguf_text_files.write_language(tmp_path / "clip.gguf", reference.text_encoder.state_dict(), lambda _: "Q8_0")
    clip = load_clip(path)
    for words in (refusal(output, "ModelSave", model=model), refusal(output, "CLIPSave", clip=clip.clone()),
                  refusal(output, "CheckpointSave", model=model, clip=clip, vae=vae_of(tmp_path, reference, {}))):
        assert "its weights are still GGUF. Choose another Weight format" in words


def test_loras_of_another_size_are_refused(output, tmp_path, plain, clip):
    """Core logs a line for each matrix and would write the file without them."""
    from comfy.weight_adapter import LoRAAdapter
    wide = LoRAAdapter(set(), (torch.zeros(300, 4), torch.zeros(4, 300), None, None, None, None))
    model, clip = model_of(tmp_path, plain, "as stored").clone(), text_lora(clip, (300, 4), (4, 300))
    model.add_patches({f"diffusion_model.{MATRICES[0]}": wide})
    assert "the LoRA gives [300, 300], the model expects" in refusal(output, "ModelSave", model=model)
    assert "the LoRA gives [300, 300], the model expects" in refusal(output, "CLIPSave", clip=clip)


@pytest.mark.parametrize("name", ["int8 ConvRot", "nvfp4", "GGUF"])
@pytest.mark.parametrize("node", ["ModelMergeSimple", "ModelSubtract"])
def test_quantised_models_are_not_merged(output, tmp_path, plain, name, node):
    """Nor subtracted, for a LoRA to be extracted: core asks their layers for what is in the state dict alone."""
    from comfy_extras import nodes_model_merging as core
    model = (load(gguf_files.write(tmp_path / "model.gguf", plain, "Q4_K"))
             if name == "GGUF" else model_of(tmp_path, plain, name))
    with pytest.raises(Refusal, match="Nodes that merge or subtract models need unquantized weights"):
        getattr(core, node)().merge(model, with_lora(model), 0.5)


def test_no_sentence_calls_a_file_what_the_loader_wants(output, tmp_path, plain, reference):
    """`a Qwen3-VL text encoder, not a text encoder` is no sentence."""
    model, clip, vae = model_of(tmp_path, plain, "bf16"), clip_of(tmp_path, reference, "int8"), vae_of(
        tmp_path, reference, {})
    loaders = {"ModelSave": load, "CLIPSave": load_clip, "VAESave": load_vae}
    for node, parts in {"ModelSave": {"model": model}, "CLIPSave": {"clip": clip}, "VAESave": {"vae": vae}}.items():
        path = saved(output, node, **parts)
        for other in {*loaders.values(), load_enhancer} - {loaders[node]}:
            with pytest.raises(CheckpointError) as raised:
                other(path)
            found, _, wanted = str(raised.value).partition(", not a ")
            assert wanted and wanted.split(" for ")[0] not in found


# ---------------------------------------------------------------- LoRAs

def applied(model, path):
    from qwen_image_2.nodes.bridge.lora import apply
    done = apply(model, path, path.name, 1.0)
    assert done.unused == []
    return done


@pytest.mark.parametrize("kind, bound", [("standard", 0.02), ("full_diff", 1e-4)])
def test_an_extracted_lora(output, tmp_path, plain, kind, bound):
    """Core stores fp16 and of a standard one cuts off the largest hundredth of the values."""
    from comfy_extras.nodes_lora_extract import LoraSave
    from comfy_extras.nodes_model_merging import ModelSubtract
    model = model_of(tmp_path, plain, "as stored")
    changed = with_lora(model)
    difference, = ModelSubtract().merge(changed, model, 1.0)
    LoraSave.execute("lora", 8, kind, True, difference)
    found = velocity(applied(model, written(output, "lora")).model)
    assert error(found, velocity(changed)) < bound < error(velocity(model), velocity(changed))


def test_an_extracted_lora_of_the_text_encoder(output, clip):
    """By core's own loader: a LoRA of the pack's is for the transformer."""
    import comfy.sd
    from comfy_extras.nodes_lora_extract import LoraSave
    from comfy_extras.nodes_model_merging import CLIPSubtract
    changed = text_lora(clip, (64, 4), (4, 64))
    difference, = CLIPSubtract().merge(changed, clip, 1.0)
    LoraSave.execute("lora", 4, "full_diff", True, None, difference)
    _, found = comfy.sd.load_lora_for_models(None, clip, load_file(written(output, "lora")), 1.0, 1.0)
    without, expected = states(clip), states(changed)
    assert error(states(found), expected) < 1e-2 < error(without, expected)


@pytest.mark.parametrize("algorithm", ["LoRA", "LoHa", "LoKr"])
def test_a_trained_lora(output, tmp_path, plain, algorithm):
    """What core's training node makes for each of the model's layers, written by its Save LoRA Weights."""
    from comfy_extras import nodes_train
    model = model_of(tmp_path, plain, "as stored")
    with torch.inference_mode(False):
        lora, adapters = nodes_train._setup_lora_adapters(model.clone(), {}, algorithm, torch.float32, 4)
    generator = torch.Generator().manual_seed(6)
    lora = {name: value if name.endswith("alpha") else torch.randn(value.shape, generator=generator) * 0.02
            for name, value in lora.items()}
    nodes_train.SaveLoRA.execute(lora, "trained", 8)
    done = applied(model, written(output, "trained"))
    norms = 2 * files.SPEC.layers  # of queries and keys: the text's is no layer of ComfyUI's
    assert done.matrices == len(adapters) == len([value for value in plain.values() if value.ndim == 2]) + norms
    assert error(velocity(done.model), velocity(model)) > 1e-3


# ---------------------------------------------------------------- latents

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_latent(output, vae, dtype):
    """Of a picture with transparency, in any dtype that a sampler leaves: core gives it back in fp32."""
    import nodes
    picture = torch.rand(2, 32, 64, 4, generator=torch.Generator().manual_seed(0))
    latent = vae.encode(picture).to(dtype)
    nodes.SaveLatent().save({"samples": latent}, "latent", {"1": {}}, {"workflow": {}})
    loaded, = nodes.LoadLatent().load(f"{written(output, 'latent').name} [output]")
    assert torch.equal(loaded["samples"], latent.float())
    torch.testing.assert_close(vae.decode(loaded["samples"]), vae.decode(latent.float()))


def test_a_data_set_of_latents_and_prompts(output, model, clip, vae, tmp_path, monkeypatch):
    """With references: core unpickles nothing but tensors, numbers, lists and tuples."""
    import folder_paths
    import node_helpers
    from comfy_extras import nodes_dataset

    from qwen_image_2.nodes.bridge.text_encoders.families import encode_together
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "datasets", ([str(tmp_path)], set()))
    picture = torch.rand(1, 64, 64, 4, generator=torch.Generator().manual_seed(0))
    conditioning = node_helpers.conditioning_set_values(encode_together(clip, ["a hat"], [picture])[0],
                                                        {"reference_latents": [vae.encode(picture)]})
    latent = {"samples": torch.zeros(1, 64, 4, 4)}
    nodes_dataset.SaveTrainingDataset.execute([latent], [conditioning], ["set"], [10])
    latents, conditionings = nodes_dataset.LoadTrainingDataset.execute("set").result
    assert torch.equal(latents[0]["samples"], latent["samples"])
    found, wanted = (model.model.extra_conds(**entry[0][1], cross_attn=entry[0][0])["prefix"].cond.condition
                     for entry in (conditionings[0], conditioning))
    assert found.slots == wanted.slots and torch.equal(found.text, wanted.text)
    assert all(map(torch.equal, found.references, wanted.references))
