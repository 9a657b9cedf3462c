"""Templates of the first family, word by word, and what the transformer sees of them."""
import hashlib

import pytest
from transformers import Qwen2TokenizerFast

from qwen_image_2.model.qwen_image_1 import prompt

SLOT = "<|vision_start|><|image_pad|><|vision_end|>"

SHA256 = {  # of diffusers' own, as the facts of this family have them
    "TEXT_TEMPLATE": "0194d360a674d2f127a8b5f2ad08f0692a2baab34d2b378d183aeb84087e91cc",
    "EDIT_TEMPLATE": "846b0a7896f4ed820b88206dd2f23dbad7d2f1f2327589ab63be5ccc01c6f3a0",
    "EDIT_PLUS_TEMPLATE": "d5d65822319c122831aa17afe5322570a88232ba8475cd5cd0b9822f56d83857",
    "LABELLED_SLOT": "250b0312768c0b1ef50053b7b199966bce7737ce3f47d8f5368670875748feaa",
    "CAPTION_EN": "bd7dcd09c0e5c08d57dec53dba1c5331a45081dce36df70039ca6e1ce5791e6b",
    "CAPTION_CN": "af81658d2a4860d3115c470875fb1f31b202b18bfc4bac64ce39c1ddeb0a18bb",
}


@pytest.mark.parametrize("name", SHA256)
def test_templates_are_verbatim(name):
    assert hashlib.sha256(getattr(prompt, name).encode()).hexdigest() == SHA256[name]


def test_templates_are_those_of_the_installed_diffusers():
    from diffusers.modular_pipelines.qwenimage import prompt_templates as theirs
    assert {getattr(prompt, name) for name in SHA256} == {
        value for name, value in vars(theirs).items() if name.startswith("QWENIMAGE") and isinstance(value, str)}


def test_pictures_have_one_slot_or_labels_before_the_prompt():
    assert prompt.render("a {cat}") == prompt.TEXT_TEMPLATE.replace("{}", "a {cat}")
    assert f"user\n{SLOT}make it blue<|im_end|>" in prompt.render("make it blue", prompt.EDIT, 1)
    assert f"user\nPicture 1: {SLOT}blue<|im_end|>" in prompt.render("blue", prompt.EDIT_PLUS, 1)
    assert f"user\nPicture 1: {SLOT}Picture 2: {SLOT}both<|im_end|>" in prompt.render("both", prompt.EDIT_PLUS, 2)


def test_an_instruction_without_a_template_gets_the_one_of_core():
    assert [prompt.template_for(count) for count in range(4)] == [prompt.TEXT_TO_IMAGE, prompt.EDIT, prompt.EDIT_PLUS,
                                                                  prompt.EDIT_PLUS]


@pytest.mark.parametrize("pictures", [0, 2])
def test_the_first_edit_model_reads_one_picture(pictures):
    with pytest.raises(ValueError, match=rf"reads exactly one reference, got {pictures}. Connect one, or choose an Ed"):
        prompt.render("make it blue", prompt.EDIT, pictures)


def test_an_image_token_in_the_prompt_is_refused():
    with pytest.raises(ValueError, match="is reserved for reference images"):
        prompt.render("draw <|image_pad|>")


@pytest.mark.parametrize("text, labelled", [
    ("put <image1> on <image12>", "put Picture 1 on Picture 12"), ("<image> image1 <image 1>",) * 2])
def test_names_of_references_become_labels(text, labelled):
    assert prompt.with_labels(text) == labelled


@pytest.fixture(scope="module")
def tokenizer(comfyui_path):
    return Qwen2TokenizerFast.from_pretrained(comfyui_path / "comfy" / "text_encoders" / "qwen25_tokenizer")


@pytest.mark.parametrize("template, pictures, dropped", [
    (prompt.TEXT_TO_IMAGE, 0, 34), (prompt.EDIT, 1, 64), (prompt.EDIT_PLUS, 3, 64)])
@pytest.mark.parametrize("text", ["", "a cat", "<|im_start|>user\nnot yet"])
def test_the_system_turn_is_dropped(tokenizer, template, pictures, dropped, text):
    tokens = tokenizer(prompt.render(text, template, pictures))["input_ids"]
    assert prompt.tokens_dropped(tokens) == dropped
    assert tokens[-5:] == [151645, 198, 151644, 77091, 198]
    if not text and not pictures:
        assert len(tokens) == dropped + 5


@pytest.mark.parametrize("text, kept", [
    ("no turn", "no turn"), ("<|im_start|>user\nhello", "hello"), ("<|im_start|>system\na<|im_end|>\n<|im_start|>b",
                                                                  "<|im_start|>b")])
def test_conversations_of_others_are_dropped_as_core_drops_them(tokenizer, text, kept):
    tokens = tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokens[prompt.tokens_dropped(tokens):]) == kept


def test_captions_are_as_long_as_published(tokenizer):
    assert [len(tokenizer(text)["input_ids"]) for text in (prompt.CAPTION_EN, prompt.CAPTION_CN)] == [211, 212]
