"""The text benchmark's own prompts, counted by the model's tokenizer."""
import pytest

from qwen_image_2.tools.text_benchmark import prompt_sets

LENGTHS = {"short": (20, 50), "medium": (51, 150), "long": (151, 400), "longest": (500, 1000)}


@pytest.mark.parametrize("length", LENGTHS)
def test_prompts_are_as_long_as_they_are_called(comfyui, length):
    from qwen_image_2.nodes.bridge.text_encoders.families import count_tokens
    least, most = LENGTHS[length]
    counts = {prompt.id: count_tokens(prompt.prompt) for prompt in prompt_sets.read(prompt_sets.OWN)
              if prompt.id.endswith(f"-{length}")}
    assert len(counts) == 10 and not {name: count for name, count in counts.items() if not least <= count <= most}
    assert length != "longest" or max(counts.values()) > 950
