"""Prompt states of the first family against the reference pipelines', and core's own nodes on its CLIP."""
import numpy as np
import pytest
import torch
from PIL import Image

from qwen_image_2.messages import Refusal
from qwen_image_2.model.language.tokens import IMAGE_PAD_TOKEN
from qwen_image_2.model.qwen_image_1 import prompt
from qwen_image_2.tests import reference_1
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

BOUND = 1e-5  # of the largest value; 1.5e-6 was seen
CONFIG = {"text_config": tiny.TEXT_CONFIG_1, "vision_config": tiny.VISION_CONFIG_1}
CHINESE = "一张海报，上面写着“你好，世界”，红色背景，金色大字。"
PROMPTS = {
    "english": 'A poster that says "HELLO"',
    "chinese": CHINESE,
    "empty": "",
    "a space": " ",
    "escapes": r"weights (like:1.2) \(this\) and embedding:none stay {text}",
    "special": "a literal <|endoftext|> in the middle",
    "4000 tokens": "A quiet harbour at dawn, with the words \"OPEN DAY\" in tall red letters above it. " * 200,
}


@pytest.fixture(scope="module")
def encoder():
    return reference_1.text_encoder()


@pytest.fixture(scope="module")
def pipelines(comfyui, encoder):
    return reference_1.prompt_pipelines(comfyui, encoder)


@pytest.fixture(scope="module")
def clip(comfyui, encoder, tmp_path_factory):
    from qwen_image_2.nodes.bridge.text_encoders.families import load_text_encoder
    path = tmp_path_factory.mktemp("text_encoders") / "qwen_2.5_vl_7b.safetensors"
    tiny.save(encoder.state_dict(), path, CONFIG, torch.float32)
    return load_text_encoder(path, path.name)


def encode(clip, text, images=(), template=None):
    from qwen_image_2.nodes.bridge.text_encoders.families import encode_together
    (states, extra), = encode_together(clip, [text], images, template)[0]
    assert "attention_mask" not in extra  # nothing is padded
    return states


def pictures(sizes, mode="RGB"):
    generator = np.random.default_rng(len(sizes))
    return [Image.fromarray(generator.integers(0, 256, (h, w, len(mode)), dtype=np.uint8), mode) for w, h in sizes]


def tensors(images):
    return [torch.from_numpy(np.asarray(image).astype(np.float32) / 255).unsqueeze(0) for image in images]


# ---------------------------------------------------------------- the reference

@pytest.mark.parametrize("text", PROMPTS.values(), ids=PROMPTS.keys())
def test_prompt_states_equal_the_reference(clip, pipelines, text):
    with reference_1.longer_than_cut(pipelines["t2i"]):
        expected, mask = pipelines["t2i"].encode_prompt(text, max_sequence_length=100_000)
    assert mask is None
    assert error(encode(clip, text), expected) < BOUND


def test_long_prompts_are_long_and_not_cut(clip):
    from qwen_image_2.nodes.bridge.text_encoders.families import count_tokens
    assert 4000 <= count_tokens(PROMPTS["4000 tokens"]) == encode(clip, PROMPTS["4000 tokens"]).shape[1] - 5
    assert encode(clip, "").shape[1] == 5


def test_long_prompts_attend_in_pieces(clip, monkeypatch):
    """Or their scores would be a matrix of tokens by tokens for each head."""
    import comfy.text_encoders.llama as core

    from qwen_image_2.nodes.bridge.text_encoders import qwen2_5_vl
    images, seen, choose = tensors(pictures([(140, 196)])), [], core.optimized_attention_for_device
    expected = encode(clip, "make it blue", images, prompt.EDIT)

    def recording(*arguments, **options):
        whole = choose(*arguments, **options)
        return lambda q, k, *more, **named: seen.append((q.shape[2], k.shape[2])) or whole(q, k, *more, **named)

    monkeypatch.setattr(core, "optimized_attention_for_device", recording)
    monkeypatch.setattr(qwen2_5_vl, "QUERIES", 40)
    assert error(encode(clip, "make it blue", images, prompt.EDIT), expected) < BOUND
    assert seen == [(40, 40), (40, 80), (29, 109)] * 3


# Whole tokens and not, smaller than a window of 112 pixels and larger.
SIZES = [(140, 196), (160, 128), (352, 416)]


@pytest.mark.parametrize("size", SIZES)
def test_states_of_the_first_edit_model(clip, pipelines, size):
    image, = pictures([size])
    expected, _ = pipelines["edit"].encode_prompt("make it blue", image=image)
    assert error(encode(clip, "make it blue", tensors([image]), prompt.EDIT), expected) < BOUND


@pytest.mark.parametrize("count", [1, 2, 3])
def test_states_of_edits_with_labels(clip, pipelines, count):
    images = pictures(SIZES[:count])
    text = "put Picture 1 beside the last"
    expected, _ = pipelines["edit plus"].encode_prompt(text, image=images)
    assert error(encode(clip, text, tensors(images), prompt.EDIT_PLUS), expected) < BOUND


def test_positions_on_three_axes_matter(clip, comfyui):
    """As the weights were trained; what diffusers 0.42.1 computes by itself is another thing."""
    flat = reference_1.prompt_pipelines(comfyui, reference_1.text_encoder(spatial_positions=False))["edit"]
    image, = pictures(SIZES[:1])
    expected, _ = flat.encode_prompt("make it blue", image=image)
    assert error(encode(clip, "make it blue", tensors([image]), prompt.EDIT), expected) > 0.01


def test_readout_is_after_the_final_norm(clip, encoder):
    from qwen_image_2.nodes.bridge.text_encoders.families import language_model
    states, seen = [], encode(clip, PROMPTS["english"])
    handle = language_model(clip).model.norm.register_forward_hook(lambda _, inputs, output: states.append(output))
    encode(clip, PROMPTS["english"])
    handle.remove()
    assert error(seen, states[0][:, 34:]) < 1e-6


def test_transparency_is_composed_over_white(clip):
    image, = pictures([(140, 140)], "RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    found, expected = (encode(clip, "edit", tensors([one]), prompt.EDIT) for one in (image, flat))
    assert error(found, expected) < 5e-3  # a value may be rounded to its neighbour
    plain = encode(clip, "edit", [tensors([image])[0][..., :3]], prompt.EDIT)
    assert error(plain, expected) > 0.05


def test_core_has_nothing_left_to_resize(clip):
    import comfy.text_encoders.qwen_vl
    small, large = torch.rand(1, 131, 90, 3), torch.rand(1, 140, 84, 3)
    assert clip.tokenizer.shown(large) is large
    shown = clip.tokenizer.shown(small)
    assert shown.shape == (1, 140, 84, 3) and clip.tokenizer.shown(shown) is shown
    patches, grid = comfy.text_encoders.qwen_vl.process_qwen2vl_images(shown)
    assert grid.tolist() == [[1, 10, 6]] and patches.shape == (60, 1176)


# ---------------------------------------------------------------- both prompts of an edit

@pytest.fixture
def looks(clip, monkeypatch):
    """Grows by one with every pass through the vision tower."""
    from qwen_image_2.nodes.bridge.text_encoders.families import language_model
    counted, tower = [], type(language_model(clip).visual)
    forward = tower.forward
    monkeypatch.setattr(tower, "forward", lambda self, *arguments: counted.append(1) or forward(self, *arguments))
    return counted


def test_the_negative_prompt_sees_the_same_pictures_and_the_tower_sees_each_once(clip, looks):
    from qwen_image_2.nodes.bridge.text_encoders.families import encode_together
    images = [torch.rand(1, *size, generator=torch.Generator().manual_seed(4)) for size in [(90, 96, 4), (64, 64, 3)]]
    together = encode_together(clip, ("blue", " "), images, prompt.EDIT_PLUS)
    assert not any(one.is_encoded for one in together) and not looks
    found = [states for (states, _), in together]
    assert len(looks) == 2
    for states, text in zip(found, ("blue", " "), strict=True):
        assert error(states, encode(clip, text, images, prompt.EDIT_PLUS)) < 1e-6
    assert len(looks) == 6
    assert found[0].shape == found[1].shape


def test_what_cannot_be_encoded_is_refused_before_it_is_read(clip):
    from qwen_image_2.nodes.bridge.text_encoders.families import encode_together
    with pytest.raises(Refusal, match="is reserved for reference images"):
        encode_together(clip, ("a cat", "draw <|image_pad|>"), [])
    with pytest.raises(Refusal, match="reads exactly one reference, got 2"):
        encode_together(clip, ("a cat",), [torch.rand(1, 64, 64, 3)] * 2, prompt.EDIT)


# ---------------------------------------------------------------- ComfyUI's nodes

def test_cores_text_encode_works(clip):
    import nodes
    (states, extra), = nodes.CLIPTextEncode().encode(clip, PROMPTS["english"])[0]
    assert error(states, encode(clip, PROMPTS["english"])) < 1e-6 and "attention_mask" not in extra


def test_cores_nodes_for_edits_work(clip):
    """Their own templates are ours; they resize otherwise, and bilinearly."""
    from comfy_extras.nodes_qwen import TextEncodeQwenImageEdit, TextEncodeQwenImageEditPlus
    image = torch.rand(1, 384, 384, 4, generator=torch.Generator().manual_seed(1))
    plus = TextEncodeQwenImageEditPlus.execute(clip, "make it blue", image1=image, image2=image[:, :, :192]).result[0]
    assert error(plus[0][0], encode(clip, "make it blue", resized(image, image[:, :, :192]), prompt.EDIT_PLUS)) < 1e-6
    text = TextEncodeQwenImageEditPlus.execute(clip, "a cat").result[0]
    assert text[0][0].shape == encode(clip, "a cat").shape
    large = torch.rand(1, 1024, 1024, 3, generator=torch.Generator().manual_seed(1))
    edit = TextEncodeQwenImageEdit.execute(clip, "make it blue", image=large).result[0]
    assert error(edit[0][0], encode(clip, "make it blue", [large], prompt.EDIT)) < 1e-6


def resized(*images):
    """As the node does it: an area of 384 x 384."""
    import comfy.utils
    sizes = [(round(one.shape[2] * scale), round(one.shape[1] * scale))
             for one in images for scale in [(384 * 384 / (one.shape[1] * one.shape[2])) ** 0.5]]
    return [comfy.utils.common_upscale(one.movedim(-1, 1), *size, "area", "disabled").movedim(1, -1)
            for one, size in zip(images, sizes, strict=True)]


def test_cores_node_with_an_image_token_in_the_prompt_is_refused(clip):
    from comfy_extras.nodes_qwen import TextEncodeQwenImageEditPlus
    with pytest.raises(Refusal, match=r"has 2 image slots \(<\|image_pad\|>\) for 1 images. Remove that token"):
        TextEncodeQwenImageEditPlus.execute(clip, "draw <|image_pad|>", image1=torch.rand(1, 64, 64, 3))


def test_a_conversation_of_another_node_is_taken_as_it_is(clip):
    states = clip.encode_from_tokens(clip.tokenize(prompt.render("a cat")))
    assert error(states, encode(clip, "a cat")) < 1e-6


def test_the_family_is_a_property_of_the_clip(clip, comfyui):
    from types import SimpleNamespace

    from comfy.text_encoders.qwen_image import QwenImageTokenizer

    from qwen_image_2.nodes.bridge.text_encoders import families
    assert families.family_of(clip) == families.family_of(clip.clone()) == "1.x"
    families.check_clip(clip, reads_images=True)
    other = SimpleNamespace(tokenizer=QwenImageTokenizer())
    assert families.family_of(other) is None
    with pytest.raises(Refusal, match="not the Qwen-Image 2 text encoder"):
        families.check_clip(other)


def test_encode_prompt_works_and_knows_what_this_family_was_trained_for(clip, monkeypatch):
    from qwen_image_2.nodes import text
    told = []
    monkeypatch.setattr(text, "notify", lambda cls, *notes: told.append(notes) or {})
    for prompt_text, words in (("word " * 1020, "1021 tokens."), ("word " * 1030, "the model was trained for 1024.")):
        positive, negative, tokens = text.QwenImage2TextEncode.execute(clip, prompt_text, "").result
        assert error(positive[0][0], encode(clip, prompt_text)) < 1e-6
        assert negative[0][0].shape[1] == 5 and words in told.pop()[0] and tokens in (1021, 1031)


# ---------------------------------------------------------------- text that it writes

def reference_text(encoder, clip, conversation, images, tokens):
    """What transformers writes, without sampling."""
    from comfy.text_encoders.qwen_vl import process_qwen2vl_images
    seen = [process_qwen2vl_images(image) for image in images]
    waiting, ids = iter(seen), []
    for token in clip.tokenizer.hugging_face(conversation)["input_ids"]:
        ids += [token] * (len(next(waiting)[0]) // 4 if token == IMAGE_PAD_TOKEN else 1)
    ids = torch.tensor([ids])
    sight = {"pixel_values": torch.cat([patches for patches, _ in seen]),
             "image_grid_thw": torch.cat([grid for _, grid in seen]),
             "mm_token_type_ids": (ids == IMAGE_PAD_TOKEN).int()} if seen else {}
    written = encoder.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
                               do_sample=False, eos_token_id=[151643, 151645], **sight)
    return written[0, ids.shape[1]:].tolist()


@pytest.mark.parametrize("conversation, count", [(prompt.CAPTION_EN, 1), (prompt.CAPTION_CN, 1),
                                                 (prompt.render("a dog"), 0)], ids=["English", "Chinese", "text"])
def test_it_writes_what_the_reference_writes(clip, encoder, conversation, count):
    images = tensors(pictures(SIZES[:1]))[:count]
    plain = reference_1.text_encoder(spatial_positions=False)  # whose hook would name tokens that are written, too
    found = clip.generate(clip.tokenize(conversation, images=images), do_sample=False, max_length=12)
    assert found == reference_text(plain, clip, conversation, images, 12)


def test_the_enhancer_may_ask_it(clip):
    from qwen_image_2.nodes.bridge.text_encoders import generation
    from qwen_image_2.pages import enhancement
    generation.check_writes(clip, sees=True)
    written = generation.generate(clip, "Be good.", "a dog", [torch.rand(90, 100, 4), torch.rand(70, 40, 3)],
                                  enhancement.EDIT, 0, 3, lambda tokens: None)
    assert written.tokens == 3


# ---------------------------------------------------------------- sizes

def test_published_sizes_are_core_s(comfyui):
    """Qwen2.5-VL-7B as core knows it: what a file without configuration is taken for."""
    from comfy.text_encoders import llama

    from qwen_image_2.model.checkpoints import matching
    from qwen_image_2.model.language.qwen2_5_vl import TextEncoderSpec
    from qwen_image_2.nodes.bridge.text_encoders.qwen2_5_vl import Qwen25VL, language_config
    spec = TextEncoderSpec(lm_head=False)
    ours, core = language_config(spec), llama.Qwen25_7BVLI_Config()
    names = [*vars(core), "head_dim", "rope_dims", "q_norm", "k_norm", "qkv_bias"]
    assert {name: getattr(ours, name) for name in names} == {name: getattr(core, name) for name in names}
    meta = (None, torch.device("meta"), torch.nn)
    made, cores = Qwen25VL(spec, *meta), llama.Qwen25_7BVLI({}, *meta)
    assert matching.shapes(made) == matching.shapes(cores)
    assert made.visual.fullatt_block_indexes == cores.visual.fullatt_block_indexes
    assert made.visual.window_size == cores.visual.window_size


def test_a_card_with_bf16_computes_in_it(clip, monkeypatch):
    """The language model as the reference, the vision tower in fp32 as core."""
    from qwen_image_2.nodes.bridge.text_encoders import families, shared
    monkeypatch.setattr(shared, "compute_dtype", lambda device: torch.bfloat16)
    image, dtypes = tensors(pictures(SIZES[:1])), []
    model = families.language_model(clip)
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: dtypes.append(inputs[0].dtype))
             for layer in (model.visual.blocks[0].mlp, model.model.layers[0].mlp)]
    states = encode(clip, "make it blue", image, prompt.EDIT)
    for hook in hooks:
        hook.remove()
    monkeypatch.undo()
    assert dtypes == [torch.float32, torch.bfloat16]
    assert 1e-4 < error(states, encode(clip, "make it blue", image, prompt.EDIT)) < 0.1
