"""Inputs that are linked: ComfyUI asks about them with None beforehand, and takes an exception for "changed"."""
import inspect

import pytest

NEEDS_ONE_OF = {"QwenImage2ApplyControl": "image"}  # optional one by one, yet one has to be connected


def hooks(name: str) -> list:
    from qwen_image_2.nodes import NODES
    return [node for node in NODES if name in vars(node)]


def unknown(node, hook: str, optional: bool) -> dict:
    """The inputs that the hook asks for as if they were linked; lists of one where a node takes lists."""
    names = [name for name, one in inspect.signature(getattr(node, hook)).parameters.items()
             if one.kind is not inspect.Parameter.VAR_KEYWORD and (
                 optional or one.default is inspect.Parameter.empty or name == NEEDS_ONE_OF.get(node.__name__))]
    return dict.fromkeys(names, [None] if node.define_schema().is_input_list else None)


@pytest.mark.parametrize("optional", [True, False], ids=["all linked", "all that must be given"])
@pytest.mark.parametrize("hook", ["fingerprint_inputs", "validate_inputs"])
def test_every_question_about_linked_inputs_has_an_answer(comfyui, hook, optional):
    nodes = hooks(hook)
    assert len(nodes) > 2
    for node in nodes:
        answers = [getattr(node, hook)(**unknown(node, hook, optional)) for _ in range(2)]
        assert answers[0] == answers[1], node
        assert answers[0] is True or hook == "fingerprint_inputs", node


def test_an_enhancer_that_may_be_off_takes_note_of_its_system_prompt(comfyui, monkeypatch):
    from qwen_image_2.nodes.enhance import QwenImage2PromptEnhance, system_prompts
    monkeypatch.setattr(system_prompts, "read", lambda name, task: name)
    one, other = (QwenImage2PromptEnhance.fingerprint_inputs(None, name) for name in ("a.txt", "b.txt"))
    assert one != other
    assert QwenImage2PromptEnhance.fingerprint_inputs(False, "a.txt") == ""


def test_a_system_prompt_that_is_not_there_is_always_the_same(comfyui):
    """Or an enhancer that is off would have all that follows computed again in every run."""
    from qwen_image_2.nodes.enhance import QwenImage2PromptEnhance
    one, again = (QwenImage2PromptEnhance.fingerprint_inputs(None, "gone.txt") for _ in range(2))
    assert one == again and "The system prompt gone.txt is not below" in one
