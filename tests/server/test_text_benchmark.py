"""What bench text measures, on the miniature: right prompts reach a floor, and the same questions mixed up do not."""
from dataclasses import replace

import pytest

from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tools import tiny
from qwen_image_2.tools.cli.errors import UserError
from qwen_image_2.tools.miniature.painter import BUILT_IN
from qwen_image_2.tools.text_benchmark import benchmark, prompt_sets
from qwen_image_2.tools.text_benchmark.benchmark import Run, Settings, loader_files
from qwen_image_2.tools.text_benchmark.prompt_sets import Prompt

PICTURES = 4
FLOOR = 3  # of them; the miniature writes 83 % of its words right in 40 steps


def answers(client, folder, prompts, files=BUILT_IN) -> list[benchmark.Answer]:
    run = Run(folder, prompts, Settings(files, preset="Custom", steps=8), {})
    run.draw(client, lambda line: None)
    assert run.finished
    return run.answers


@pytest.fixture(scope="module")
def asked(client, tmp_path_factory):
    """Answers to right prompts, and to the same ones that should say the next prompt's word: one after the other,
    because the server draws the same picture once then."""
    prompts, folder = prompt_sets.of_miniature(PICTURES), tmp_path_factory.mktemp("runs")
    mixed = [replace(prompt, lines=other.lines) for prompt, other in zip(prompts, prompts[1:] + prompts[:1])]
    assert all(prompt.lines != other.lines for prompt, other in zip(prompts, mixed))
    pairs = [(*answers(client, folder / prompt.id / "right", [prompt]),
              *answers(client, folder / prompt.id / "mixed", [other])) for prompt, other in zip(prompts, mixed)]
    return list(zip(*pairs))


def test_the_miniature_writes_its_words(asked):
    right, _ = asked
    assert sum(answer.passed for answer in right) >= FLOOR
    assert sum(answer.word_accuracy for answer in right) >= FLOOR
    assert all(0 < answer.tokens < 50 for answer in right)


def test_prompts_mixed_up_are_noticed(asked):
    _, mixed = asked
    assert not any(answer.passed for answer in mixed)
    assert sum(answer.word_accuracy for answer in mixed) == 0


def test_a_long_prompt_of_ours_is_counted_and_scored(client, tmp_path):
    prompt = max(prompt_sets.read(prompt_sets.OWN), key=lambda prompt: len(prompt.prompt))
    answer, = answers(client, tmp_path, [prompt])
    assert 900 < answer.tokens <= 1000 and answer.length == "up to 1,000 tokens"
    assert len(answer.lines) == len(prompt.lines) and not answer.passed and answer.word_accuracy < 0.1


FILES = {"diffusion_model": here.FUSED, "text_encoder": here.TEXT_ENCODER, "vae": here.WAN_VAE}


def test_any_checkpoint_can_be_asked(client, tmp_path):
    """Random weights write nothing."""
    prompt = Prompt("noise", 'A sign that says "OPEN".', ("OPEN",), "English", "sign", (96, 64))
    answer, = answers(client, tmp_path, [prompt], loader_files(client, FILES))
    assert (answer.passed, answer.word_accuracy) == (False, 0)


def test_a_model_of_the_first_family_can_be_asked_with_guidance(client, tmp_path):
    files = {"diffusion_model": tiny.TRANSFORMER_1, "text_encoder": tiny.TEXT_ENCODER_1, "vae": tiny.VAE_1}
    prompt = Prompt("noise", 'A sign that says "OPEN".', ("OPEN",), "English", "sign", (96, 64))
    settings = Settings(loader_files(client, files), preset="Custom", steps=2, cfg=4.0, negative=" ")
    run, said = Run(tmp_path, [prompt], settings, {}), []
    run.draw(client, said.append)
    assert run.finished and not run.answers[0].passed
    assert any(tiny.TRANSFORMER_1 in line for line in said) and not any("made for CFG" in line for line in said)


def test_a_folder_without_weights_is_refused(client):
    """As ComfyUI lists it: the miniature is always there."""
    class Empty:
        def object_info(self, name):
            found = client.object_info(name)
            for kind in BUILT_IN:
                found[name]["input"]["required"][kind][1]["options"] = ["miniature"]
            return found
    with pytest.raises(UserError, match="There are no weights: the folder of --models has no diffusion model. Put the"):
        loader_files(Empty(), {})


@pytest.mark.parametrize(("changes", "words"), [
    ({"diffusion_model": ""}, "--diffusion-model: there is not just one file in the folder of --models; choose one of: "
                              ".*qwen_image_2.1_turbo"),
    ({"vae": "sdxl.safetensors"}, "--vae: there is no 'sdxl.safetensors' in the folder"),
    ({"vae": "miniature"}, "--vae: there is no 'miniature'"),
])
def test_a_choice_of_files_that_is_not_clear_is_refused(client, changes, words):
    with pytest.raises(UserError, match=words):
        loader_files(client, FILES | changes)
