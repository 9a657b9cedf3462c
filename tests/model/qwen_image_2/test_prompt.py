from qwen_image_2.model.qwen_image_2 import prompt


def test_template_of_text_to_image():
    assert prompt.render("a cat") == (
        "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
        "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n")


def test_template_with_references():
    slot = "<|vision_start|><|image_pad|><|vision_end|>"
    assert f"user\n<image1>{slot} <image2>{slot}make it blue<|im_end|>" in prompt.render("make it blue", 2)


def test_an_empty_prompt_is_one_space():
    assert "user\n <|im_end|>" in prompt.render("")
