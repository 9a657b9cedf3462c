"""What is told of a prompt."""
import pytest


@pytest.mark.parametrize(("prompt", "words"), [("", "is empty"), (" \n", "is empty"),
                                               ('The word "SALE', "never closed"),
                                               ('The word "SALE" in red', None), ("写着“开业", "never closed")])
def test_slips_in_a_prompt_are_told(prompt, words):
    from qwen_image_2.nodes.common.prompts import advice_on
    assert (advice_on(prompt) is None) if words is None else (words in advice_on(prompt))
