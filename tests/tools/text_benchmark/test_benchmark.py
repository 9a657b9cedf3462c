"""bench text: what it reads, what it refuses, its figures, and a run that is stopped and goes on."""
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from qwen_image_2.pages import compare, ocr
from qwen_image_2.pages.quotation import closed
from qwen_image_2.tools.cli import command_line
from qwen_image_2.tools.cli.errors import UserError
from qwen_image_2.tools.miniature.painter import BUILT_IN
from qwen_image_2.tools.pack import ROOT
from qwen_image_2.tools.text_benchmark import benchmark, prompt_sets
from qwen_image_2.tools.text_benchmark.benchmark import Answer, Run, Settings
from qwen_image_2.tools.text_benchmark.prompt_sets import Prompt

# As LongText-Bench writes them; the words are ours.
LONG_TEXT = [
    {"prompt_id": 0, "prompt": "A sign that says \"Mind the step\".", "category": "signboard", "length": "short",
     "text": ["Mind the step"], "text_length": 3},
    {"prompt_id": 1, "prompt": "木牌上写着“小心台阶”和“谢谢”。", "category": "signboard", "text": ["小心台阶", "谢谢"]},
    {"prompt": "A note.", "text": "one string\nof two lines"},
]


def jsonl(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


# ---------------------------------------------------------------- prompts

def test_our_own_prompts_are_forty_of_five_layouts_two_languages_and_four_lengths():
    prompts = prompt_sets.read(prompt_sets.OWN)
    assert len(prompts) == 40 == len({prompt.id for prompt in prompts})
    kinds = {(prompt.layout, prompt.language, prompt.id.rpartition("-")[2]) for prompt in prompts}
    assert len(kinds) == 40 and len({layout for layout, *_ in kinds}) == 5
    assert {language for _, language, _ in kinds} == {"English", "Chinese"}


@pytest.mark.parametrize("prompt", prompt_sets.read(prompt_sets.OWN), ids=lambda prompt: prompt.id)
def test_our_own_prompts_can_be_answered(prompt):
    """Each line is wanted once, in a script that the reader knows, and every quotation ends."""
    rules = compare.Rules(known=ocr.known_characters())
    assert closed(prompt.prompt) and len(set(prompt.lines)) == len(prompt.lines)
    assert not any(compare.unreadable(line, rules) for line in prompt.lines)
    assert all(compare.comparable(line, rules) for line in prompt.lines)
    # Joined lines: no double spaces, none inside Chinese.
    assert not re.search(r"  |[一-鿿，。：；] [一-鿿]", prompt.prompt)


def test_long_text_bench_is_read(tmp_path):
    english, chinese, note = prompt_sets.read(jsonl(tmp_path, *LONG_TEXT, ""))
    assert english == Prompt("0", LONG_TEXT[0]["prompt"], ("Mind the step",), "English", "signboard")
    assert (chinese.id, chinese.lines, chinese.language) == ("1", ("小心台阶", "谢谢"), "Chinese")
    assert (note.id, note.lines, note.layout) == ("3", ("one string", "of two lines"), "any")


@pytest.mark.parametrize(("line", "problem"), [
    ("{not json", "is not JSON"),
    ("[1, 2]", "is not a JSON object"),
    ("[" * 100_000, "is not JSON"),
    ({"text": ["a"]}, "has no prompt"),
    ({"prompt": " ", "text": ["a"]}, "has no prompt"),
    ({"prompt": "A sign."}, "has no text"),
    ({"prompt": "A sign.", "text": [1]}, "has no text"),
    ({"prompt": "A sign.", "text": []}, "has no text that the picture should show"),
    ({"prompt": "A sign.", "text": "\u200b"}, "has no text that the picture should show"),
])
def test_a_bad_line_is_named_by_its_number(tmp_path, line, problem):
    with pytest.raises(UserError, match=f"prompts.jsonl, line 3 {problem}") as error:
        prompt_sets.read(jsonl(tmp_path, LONG_TEXT[0], "", line))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "problem"), [
    ("[[prompt]\n", "is not a TOML file"),
    ("", "has no prompts"),
    ("[[prompt]]\nid = 'a'", "prompt 1 has no language"),
    ("[[prompt]]\nid = 'a'\nlanguage = 'English'\nlayout = 'sign'\naspect_ratio = '5:4'\nprompt = 'A \"B\".'",
     "prompt 1 has the aspect_ratio '5:4': there are 1:1"),
    ("[[prompt]]\nid = 'a'\nlanguage = 'English'\nlayout = 'sign'\naspect_ratio = '1:1'\nprompt = 'A sign.'",
     "prompt 1 quotes no text that the picture should show"),
])
def test_a_bad_file_of_our_kind_is_refused(tmp_path, text, problem):
    path = tmp_path / "prompts.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=problem):
        prompt_sets.read(path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    for name, problem in (("a.csv", "neither .toml nor .jsonl"), ("none.toml", "cannot be read"),
                          ("latin.jsonl", "is not UTF-8")):
        with pytest.raises(UserError, match=problem):
            prompt_sets.read(tmp_path / name)


def test_fewer_prompts_are_spread_over_all():
    prompts = prompt_sets.read(prompt_sets.OWN)
    some = prompt_sets.spread(prompts, 10)
    assert len(some) == 10 and len({prompt.layout for prompt in some}) == 5
    assert prompt_sets.spread(prompts, 100) == prompt_sets.spread(prompts, None) == prompts


def test_word_prompts_of_the_miniature_are_the_same_every_time():
    first = prompt_sets.of_miniature(1)
    assert first == prompt_sets.of_miniature(2)[:1]
    assert all(prompt.lines[0] in prompt.prompt for prompt in first)


# ---------------------------------------------------------------- figures and files

def line(distance: float, status: str | None = None) -> dict:
    return {"status": status or ("right" if distance == 0 else "wrong"), "distance": distance}


ANSWERS = [
    Answer("a", "English", "poster", 40, True, 1.0, 1.0, [line(0.0)], []),
    Answer("b", "Chinese", "poster", 900, False, 0.5, 0.5, [line(0.5), line(1.0, "missing")], []),
    Answer("c", "Chinese", "menu", 2000, False, 0.9, 0.9, [line(0.0), line(0.0, "unreadable")], []),
]


def test_figures():
    head, *rows = benchmark.rows(ANSWERS)
    assert head[1:] == ("pictures", "word accuracy", "edit distance", "lines right", "passed")
    assert rows[0] == ("all", "3", "0.800", "0.375", "2 of 4", "1 of 3")
    assert [row[0] for row in rows[1:]] == ["English", "Chinese", "poster", "menu", "up to 50 tokens",
                                            "up to 1,000 tokens", "above 1,000 tokens"]
    assert rows[2] == ("Chinese", "2", "0.700", "0.500", "1 of 3", "0 of 2")


PROMPTS = [Prompt(name, f'A "{name}".', (name,), "English", "sign") for name in "abc"]


def run_in(folder, *answers, prompts=PROMPTS, settings=None) -> Run:
    run = Run(folder, prompts, settings or Settings(BUILT_IN), {"commit": "none"})
    run.answers += answers
    for number, _ in enumerate(run.answers):
        Image.new("RGB", (120, 60), (0, 0, 200)).save(run.picture(number))
    (folder / "answers.json").write_text(json.dumps(
        {"run": run.key, "answers": [asdict(answer) for answer in run.answers]}))
    return run


def test_a_run_goes_on_where_it_was_and_only_with_the_same_settings(tmp_path):
    run_in(tmp_path, *ANSWERS[:2])
    again = Run(tmp_path, PROMPTS, Settings(BUILT_IN), {"commit": "none"})
    assert again.answers == ANSWERS[:2] and not again.finished
    for change in ({"settings": Settings(BUILT_IN, preset="Turbo 8")}, {"prompts": PROMPTS[:2]}):
        with pytest.raises(UserError, match=r"another run \(its (preset|prompts) differ\)"):
            run_in(tmp_path, **change)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"run": {}, "answers": [{"id": "a"}]}'])
def test_a_foreign_file_in_the_folder_is_refused_and_kept(tmp_path, content):
    (tmp_path / "answers.json").write_text(content)
    with pytest.raises(UserError, match="was not written by this benchmark"):
        run_in(tmp_path)
    assert (tmp_path / "answers.json").read_text() == content


def test_the_contact_sheet_shows_every_picture_and_its_score(tmp_path):
    page = np.asarray(Image.open(io.BytesIO(benchmark.sheet(run_in(tmp_path, *ANSWERS)))))
    blue = (page == (0, 0, 200)).all(2)
    assert blue.sum() == 3 * 240 * 120
    assert (page == benchmark.GREEN).all(2).any() and (page == benchmark.RED).all(2).any()


def test_the_real_models_canvas_follows_the_prompt_and_the_miniatures_its_sizes():
    files = {**BUILT_IN, "diffusion_model": "a", "text_encoder": "b", "vae": "c"}
    prompt = replace(PROMPTS[0], canvas="16:9")
    canvas = Settings(files).graph(prompt, 3)["canvas"]["inputs"]
    assert (canvas["aspect_ratio"], canvas["size"]) == ("16:9", "2048")
    canvas = Settings(BUILT_IN).graph(prompt, 3)["canvas"]["inputs"]
    assert (canvas["aspect_ratio"], canvas["width"], canvas["height"]) == ("custom", 160, 96)
    assert Settings(BUILT_IN, seed=5).graph(prompt, 3)["sampler"]["inputs"]["seed"] == 8


# ---------------------------------------------------------------- the command

def bench(*arguments, **options) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, str(command_line.DEV), "bench", "text", *arguments], stdout=pipe,
                            stderr=pipe, text=True, **options)


@pytest.mark.parametrize(("arguments", "problem"), [
    (["--prompts", "none.jsonl"], "none.jsonl cannot be read: No such file or directory."),
    (["--prompts", "bad.jsonl"], "bad.jsonl, line 2 is not JSON"),
    (["--models", "."], "has none of the folders diffusion_models"),
    (["--vae", "a.safetensors"], "give it with --models"),
])
def test_mistakes_are_one_sentence_before_anything_starts(tmp_path, comfyui_path, arguments, problem):
    (tmp_path / "bad.jsonl").write_text(json.dumps(LONG_TEXT[0]) + "\n{\n")
    printed, errors = (process := bench(*arguments, cwd=tmp_path)).communicate(timeout=180)
    assert (process.returncode, printed) == (1, "")
    assert errors.startswith("Error: ") and problem in errors and errors.count("\n") == 1


def test_without_rapidocr_the_install_command_is_named():
    hidden = ("import importlib.util as u, runpy, sys; find = u.find_spec\n"
              "u.find_spec = lambda name, *rest: None if name == 'rapidocr' else find(name, *rest)\n"
              f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); sys.argv = ['text']\n"
              f"runpy.run_path({str(ROOT / 'benchmarks' / 'text.py')!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, timeout=180)
    assert done.returncode == 1 and done.stdout == ""
    assert ocr.INSTALL in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.server
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_stopped_run_says_so_keeps_what_it_has_and_goes_on(tmp_path, comfyui_path):
    command = ("--count", "3", "--preset", "Custom", "--steps", "2", "--out", "run")
    process = bench(*command, cwd=tmp_path)
    while not process.stdout.readline().startswith("1 of 3: "):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert re.search(r"^PARTIAL: \d of 3 prompts, the run was stopped\.$", printed, re.M)
    kept = json.loads((tmp_path / "run" / "answers.json").read_text("utf-8"))["answers"]
    assert 1 <= len(kept) < 3 and (tmp_path / "run" / "sheet.png").exists()

    printed, errors = (process := bench(*command, cwd=tmp_path)).communicate(timeout=240)
    assert (process.returncode, errors) == (0, "")
    assert f"{len(kept)} of 3 are there already." in printed and "PARTIAL" not in printed
    answers = json.loads((tmp_path / "run" / "answers.json").read_text("utf-8"))["answers"]
    assert len(answers) == 3 and answers[:len(kept)] == kept
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "001.png", "002.png", "003.png", "answers.json", "sheet.png"]
