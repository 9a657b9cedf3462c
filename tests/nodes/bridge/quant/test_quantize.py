"""Quantizing while loading, and saving in the official layout."""
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from qwen_image_2.atomic import WriteError
from qwen_image_2.messages import Refusal
from qwen_image_2.model.checkpoints import quantization
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.tests.nodes.bridge.quant import test_formats as files
from qwen_image_2.tests.nodes.bridge.text_encoders import test_quantized as text_files
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

TARGETS = list(quantization.TARGETS)
# The same format, made as ComfyUI's tools make it: see test_formats.FORMATS.
SAME = dict(zip(TARGETS, ("fp8 e4m3", "int8 ConvRot", "nvfp4"), strict=True))


@pytest.fixture(scope="module")
def plain():
    return tiny.randomise(tiny.shapes(Transformer(files.SPEC)), 5)


@pytest.fixture(scope="module")
def path(plain, tmp_path_factory):
    return files.write(plain, tmp_path_factory.mktemp("plain") / "plain.safetensors")


def load(path, weight_format="as stored"):
    from qwen_image_2.nodes.bridge.loading import load_model
    return load_model(path, path.name, "base", weight_format)


def save(path, patcher):
    from qwen_image_2.nodes.bridge.loading import diffusion_network
    from qwen_image_2.nodes.bridge.quant import quantize
    steps = []
    quantize.save(path, diffusion_network(patcher), lambda done, total: steps.append((done, total)))
    assert steps == [(done, len(steps)) for done in range(1, len(steps) + 1)]
    return path


@pytest.mark.parametrize("target", TARGETS)
def test_quantised_while_loading_is_what_the_tools_make(comfyui, plain, path, target):
    _, rounded = files.quantize(plain, SAME[target])
    found = files.velocity(load(path, target).model.diffusion_model)
    assert error(found, files.expected(rounded)) < files.FORMATS[SAME[target]][3]
    assert error(found, files.expected(plain)) > 1e-3


@pytest.mark.parametrize("target", TARGETS)
def test_a_saved_file_is_the_one_that_the_tools_make(comfyui, plain, path, tmp_path, target):
    saved = load_file(save(tmp_path / "q.safetensors", load(path, target)))
    expected, _ = files.quantize(plain, SAME[target])
    assert set(saved) == set(expected)
    for name, value in expected.items():
        if name.endswith("comfy_quant"):
            # Our fp8 is not to be multiplied as fp8 by any program: nothing has measured its activations.
            asked = {"full_precision_matrix_mult": True} if target == "fp8" else {}
            assert json.loads(bytes(saved[name].tolist())) == json.loads(bytes(value.tolist())) | asked
        else:
            assert (saved[name].dtype, saved[name].shape) == (value.dtype, value.shape), name
            rotated = "ConvRot" in target and f"{name.rpartition('.')[0]}.comfy_quant" in expected
            (assert_same_rotated if rotated else assert_same)(saved[name].float(), value.float(), name)


def assert_same(found: torch.Tensor, wanted: torch.Tensor, name: str) -> None:
    """Also where they were rounded: each value is scaled by itself."""
    assert torch.equal(found, wanted), name


def assert_same_rotated(found: torch.Tensor, wanted: torch.Tensor, name: str) -> None:
    """A rotation is a product of matrices, whose last bits hang on where these lie in memory: now and then a value
    falls on the other side of a half."""
    if name.endswith("weight_scale"):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    else:
        assert (found - wanted).abs().max() <= 1 and (found != wanted).float().mean() < 1e-3, name


@pytest.mark.parametrize("target", ["as stored", *TARGETS])
def test_a_saved_file_loads_as_it_was(comfyui, path, tmp_path, target):
    """The weights to the bit. What they compute hangs on where they lie in memory, too."""
    model = load(path, target)
    before = model.model.diffusion_model
    again = load(save(tmp_path / "q.safetensors", model)).model.diffusion_model
    files.assert_same_tensors(again.state_dict(), before.state_dict())
    assert error(files.velocity(again), files.velocity(before)) < files.rounding(target)


@pytest.mark.parametrize("name", files.FORMATS)
def test_a_saved_file_is_what_was_on_the_disk(comfyui, plain, tmp_path, name):
    """Names, dtypes, shapes and every bit, in every format that a file may have."""
    stored, _ = files.quantize(plain, name)
    saved = load_file(save(tmp_path / "saved.safetensors", load(files.write(stored, tmp_path / "q.safetensors"))))
    assert saved.keys() == stored.keys()
    marks = {key for key in stored if key.endswith("comfy_quant")}  # JSON, which core writes in its own way
    files.assert_same_tensors({key: saved[key] for key in saved.keys() - marks},
                              {key: stored[key] for key in stored.keys() - marks})


@pytest.mark.parametrize("name", files.FORMATS)
def test_halves_are_saved_as_one_matrix_where_they_are_one(comfyui, plain, tmp_path, name):
    stored, _ = files.halves(name, plain)
    model = load(files.write(stored, tmp_path / "split.safetensors"))
    saved = save(tmp_path / "saved.safetensors", model)
    fused = files.quantize(plain, name)[0]
    assert load_file(saved).keys() == (stored if name in files.APART else fused).keys()
    again = load(saved)
    assert again.model.spec == model.model.spec
    files.assert_same_tensors(again.model.diffusion_model.state_dict(), model.model.diffusion_model.state_dict())


@pytest.mark.parametrize("target", ["as stored", *TARGETS])
def test_a_saved_files_weights_lie_where_kernels_want_them(comfyui, path, tmp_path, target):
    """Though in the network each is followed by its mark, a text of any length."""
    saved = load_file(save(tmp_path / "q.safetensors", load(path, target)))
    assert {value.data_ptr() % 64 for value in saved.values() if value.ndim == 2} == {0}


@pytest.mark.parametrize("mark", [*quantization.TARGETS.values(), {"format": "int8_tensorwise"},
                                  {"format": "convrot_w4a4", "convrot_groupsize": 256}])
@pytest.mark.parametrize("shape", [(256, 256), (192, 768)])
def test_what_a_matrix_becomes_is_known_beforehand(comfyui, mark, shape):
    from qwen_image_2.nodes.bridge.quant import quantize
    matrix = torch.randn(shape)
    made = quantize.quantize(matrix, quantization.absmax([matrix]), mark)
    announced = quantize.form(shape, mark)
    assert {name: (value.dtype, value.shape) for name, value in announced.items()} == {
        name: (value.dtype, value.shape) for name, value in made.items()}
    assert all(value.is_meta for value in announced.values())


def test_what_is_not_quantised_keeps_its_dtype(comfyui, plain, tmp_path):
    """On a CPU ComfyUI computes quantized models in fp32 and holds their other weights so."""
    half = {name: value.bfloat16() for name, value in plain.items()}
    saved = load_file(save(tmp_path / "q.safetensors", load(files.write(half, tmp_path / "p.safetensors"), "fp8")))
    kept = {name: value for name, value in saved.items() if name in half and "transformer_blocks" not in name}
    assert len(kept) > 5
    assert all(torch.equal(value, half[name]) for name, value in kept.items())


def test_halves_that_stand_apart_share_one_scale(comfyui, plain, path, tmp_path):
    """A diffusers file has gate and projection apart; Comfy-Org's layout needs one fp8 scale for both."""
    split = files.write(tiny.to_diffusers_transformer(plain), tmp_path / "split.safetensors")
    apart = load_file(save(tmp_path / "a.safetensors", load(split, "fp8")))
    fused = load_file(save(tmp_path / "b.safetensors", load(path, "fp8")))
    assert set(apart) == set(fused)
    assert all(torch.equal(apart[name].float(), fused[name].float()) for name in fused)


@pytest.mark.parametrize("target", ["bf16", *TARGETS])
def test_loras_are_baked_in(comfyui, path, tmp_path, target):
    """A saved file says what the model said with its LoRA, but for what quantizing once more rounds."""
    model = load(path, target).clone()
    key = "diffusion_model.transformer_blocks.1.img_mlp.gate_up.weight"
    model.add_patches({(key, (0, 768, 768)): ("diff", (torch.randn(768, 256) * 0.05,))}, 0.7)
    with_lora = load(save(tmp_path / "with.safetensors", model)).model.diffusion_model
    without = load(save(tmp_path / "without.safetensors", load(path, target))).model.diffusion_model
    name = "transformer_blocks.1.img_mlp.gate_up"
    change = (_weight(with_lora, name) - _weight(without, name))[768:]
    wanted = model.patches[key][0][1][1][0] * 0.7
    assert error(change, wanted) < {"bf16": 0.05, "4-bit (nvfp4)": 0.6}.get(target, 0.2)
    same = "transformer_blocks.0.img_mlp.gate_up"
    assert torch.equal(_weight(with_lora, same), _weight(without, same))


@pytest.mark.parametrize("name", files.FORMATS)
def test_loras_are_baked_into_every_format_that_a_file_may_have(comfyui, plain, tmp_path, name):
    """Also into those that nothing is quantized to here, and beside the request to dequantize."""
    stored, _ = files.quantize(plain, name)
    path = files.write(stored, tmp_path / "q.safetensors")
    model = load(path).clone()
    layer = "transformer_blocks.1.img_mlp.out"
    model.add_patches({f"diffusion_model.{layer}.weight": ("diff", (torch.randn(256, 768) * 0.5,))}, 0.7)
    before = _weight(load(path).model.diffusion_model, layer)
    after = load(save(tmp_path / "with.safetensors", model)).model.diffusion_model
    wanted = model.patches[f"diffusion_model.{layer}.weight"][0][1][1][0] * 0.7
    assert after.get_submodule(layer).quant_format == files.FORMATS[name][0]
    assert error(_weight(after, layer) - before, wanted) < 0.3


def _weight(network, name: str) -> torch.Tensor:
    weight = network.get_submodule(name).weight
    return (weight.dequantize() if hasattr(weight, "dequantize") else weight).float()


@pytest.mark.parametrize("target, embedding", [("fp8", "float8_e4m3fn"), ("int8 (ConvRot)", "int8_tensorwise"),
                                               ("4-bit (nvfp4)", "int8_tensorwise")])
def test_text_encoders_are_quantised_and_saved(comfyui, reference, tmp_path, target, embedding):
    from qwen_image_2.nodes.bridge.quant import quantize
    from qwen_image_2.nodes.bridge.text_encoders.families import load_text_encoder, text_network
    state = reference.text_encoder.state_dict()
    path = text_files.write(state, tmp_path / "plain.safetensors")
    clip = load_text_encoder(path, path.name, target)
    target_path = tmp_path / "q.safetensors"
    quantize.save(target_path, text_network(clip), lambda done, total: None)
    with safe_open(target_path, "pt") as file:
        marks = {name.removesuffix(quantization.QUANT_RECORD):
                 json.loads(bytes(file.get_tensor(name).tolist()))["format"]
                 for name in file.keys() if name.endswith(quantization.QUANT_RECORD)}  # noqa: SIM118 (not a mapping)
        kept = {name for name in file.keys() if "visual" in name or "norm" in name}  # noqa: SIM118
        assert all(torch.equal(file.get_tensor(name), state[name]) for name in kept)
    assert marks["model.language_model.embed_tokens"] == embedding
    assert not any("visual" in layer for layer in marks)
    bound = 0.35 if "4-bit" in target else 0.1
    assert 1e-3 < error(text_files.states(target_path), text_files.states(path)) < bound


def test_a_disk_without_room_is_said_before_anything_is_written(comfyui, path, tmp_path, monkeypatch):
    from types import SimpleNamespace

    import folder_paths

    from qwen_image_2.nodes import save as node
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    monkeypatch.setattr(node.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100_000))
    with pytest.raises(Refusal, match=r"^Not enough disk space in ComfyUI's output folder: 0.1 MB free, "
                                      r"\d+\.\d MB needed for diffusion_models/x_00001_.safetensors.$"):
        node.QwenImage2SaveQuantized.execute("x", model=load(path, "fp8"))
    assert not [each for each in tmp_path.rglob("*") if each.is_file()]


def test_two_files_must_fit_together(comfyui, path, clip, tmp_path, monkeypatch):
    from types import SimpleNamespace

    import folder_paths

    from qwen_image_2.nodes import save as node
    model = load(path, "fp8")
    sizes = node.diffusion_network(model).size, node.text_network(clip).size
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    monkeypatch.setattr(node.shutil, "disk_usage", lambda folder: SimpleNamespace(free=sum(sizes) - 1))
    with pytest.raises(Refusal, match="MB needed for diffusion_models/x_00001_.safetensors, clip/x_00001_.safetensors"):
        node.QwenImage2SaveQuantized.execute("x", model=model, clip=clip)
    assert not [each for each in tmp_path.rglob("*") if each.is_file()]


def test_what_cannot_be_written_is_refused_before_anything_is_unloaded_or_written(comfyui, clip, plain, tmp_path,
                                                                                 monkeypatch):
    import comfy.model_management
    import folder_paths

    from qwen_image_2.nodes import save as node
    from qwen_image_2.tests.nodes.bridge.quant import test_gguf_ops
    packed = load(test_gguf_ops.write(tmp_path / "q8.gguf", plain, "Q8_0"))
    plain_clip = node.text_network(clip)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setattr(node, "text_network", lambda clip: plain_clip._replace(module=packed.model.diffusion_model))
    monkeypatch.setattr(comfy.model_management, "unload_all_models", lambda: pytest.fail("unloaded"))
    with pytest.raises(ValueError, match="The clip x cannot be saved: its weights are still"):
        node.QwenImage2SaveQuantized.execute("x", model=load_plain(tmp_path, plain), clip=clip)
    with pytest.raises(ValueError, match="q.safetensors cannot be saved: "):
        save(tmp_path / "q.safetensors", packed)


def load_plain(folder, plain):
    return load(files.write(plain, folder / "p.safetensors"))


@pytest.mark.skipif(os.name == "nt", reason="limits of a process are POSIX")
def test_a_disk_that_fills_up_while_saving_leaves_nothing(comfyui, path, tmp_path):
    import resource
    model, limits = load(path, "fp8"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"^q.safetensors could not be written: .*\. Nothing is left of it\.$"):
            save(tmp_path / "q.safetensors", model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_cancel_while_quantising_leaves_nothing(comfyui, path, tmp_path):
    from qwen_image_2.nodes.bridge.loading import diffusion_network
    from qwen_image_2.nodes.bridge.quant import quantize

    def cancel(done, total):
        if done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        quantize.save(tmp_path / "q.safetensors", diffusion_network(load(path, "fp8")), cancel)
    assert not list(tmp_path.iterdir())


def test_loading_while_quantising_counts_tensors_and_can_be_cancelled(comfyui, plain, path, monkeypatch):
    import comfy.model_management
    import comfy.utils
    shown = []

    def asked() -> None:
        if len(shown) == 4:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", asked)
    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", lambda bar, done, *more: shown.append(
        (done, bar.total)))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        load(path, "int8 (ConvRot)")
    assert shown == [(done, len(plain)) for done in range(1, 5)]


def test_what_does_not_fit_a_block_stays_as_it_is():
    shapes = {"transformer_blocks.0.a.weight": (24, 64), "transformer_blocks.0.b.weight": (128, 192),
              "transformer_blocks.0.norm.weight": (32,), "img_in.weight": (32, 64), "model.embed_tokens.weight": (9, 4)}
    assert quantization.layers_to_quantize(shapes, "4-bit (nvfp4)") == {
        "transformer_blocks.0.b": {"format": "nvfp4"}, "model.embed_tokens": {"format": "int8_tensorwise"}}
    layers = quantization.layers_to_quantize(shapes, "int8 (ConvRot)")
    assert layers["transformer_blocks.0.b"]["convrot_groupsize"] == 64


def test_a_network_too_small_for_a_format_is_refused(comfyui, tmp_path):
    spec = TransformerSpec(layers=1, dim=32, heads=1, head_dim=32, mlp_dim=96, context_dim=16, rope_axes=(4, 14, 14))
    state = tiny.randomise(tiny.shapes(Transformer(spec)), 5)
    with pytest.raises(CheckpointError, match="small.safetensors has no matrix large enough for 4-bit"):
        load(files.write(state, tmp_path / "small.safetensors"), "4-bit (nvfp4)")


def test_damaged_values_are_found_before_they_are_rounded(comfyui, plain, tmp_path):
    name = "transformer_blocks.1.attn.to_v.weight"
    broken = {**plain, name: plain[name].clone()}
    broken[name][3, 4] = float("nan")
    with pytest.raises(CheckpointError, match=f"tensor {name} contains NaN"):
        load(files.write(broken, tmp_path / "nan.safetensors"), "int8 (ConvRot)")


@pytest.mark.parametrize("part", ["diffusion_models", "text_encoders"])
def test_the_command_line_makes_a_file_of_either_network(comfyui, path, reference, tmp_path, part):
    from qwen_image_2.tools.cli.quantize import quantize
    if part == "text_encoders":
        path = text_files.write(reference.text_encoder.state_dict(), tmp_path / "plain.safetensors")
    quantize(comfyui, path, "int8", tmp_path / "int8.safetensors")
    with safe_open(tmp_path / "int8.safetensors", "pt") as file:
        assert sum(name.endswith(quantization.QUANT_RECORD) for name in file.keys()) > 10  # noqa: SIM118 (not a mapping)


@pytest.mark.parametrize("target", ["int8", "fp8", "4-bit"])
@pytest.mark.parametrize("part", ["diffusion_models", "text_encoders"])
def test_the_command_line_knows_the_size_beforehand(comfyui, path, reference, tmp_path, monkeypatch, part, target):
    from types import SimpleNamespace

    from qwen_image_2.tools.cli import command_line
    from qwen_image_2.tools.cli.errors import UserError
    from qwen_image_2.tools.cli.quantize import quantize
    if part == "text_encoders":
        path = text_files.write(reference.text_encoder.state_dict(), tmp_path / "plain.safetensors")
    out = tmp_path / "made.safetensors"
    quantize(comfyui, path, target, out)
    with safe_open(out, "pt") as file:  # without the header, which is large in so small a file
        size = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118 (not a mapping)
    for free, fits in ((1.05 * size, True), (0.95 * size, False)):
        monkeypatch.setattr(command_line.shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        if fits:
            command_line.require_room(path, target, out)
        else:
            with pytest.raises(UserError, match=r"free, made.safetensors needs about \d.\d GB: choose another --out"):
                command_line.require_room(path, target, out)


def test_the_command_line_refuses_in_one_sentence(comfyui, vae_file, tmp_path):
    from qwen_image_2.tools.cli.errors import UserError
    from qwen_image_2.tools.cli.quantize import quantize
    with pytest.raises(UserError, match="is a VAE with Wan key names, not a transformer"):
        quantize(comfyui, vae_file, "int8", tmp_path / "int8.safetensors")
    assert not (tmp_path / "int8.safetensors").exists()
