"""Every command line of the README is one that works from a clean clone."""

import importlib.util
import re
import shlex
import subprocess
import sys

import pytest

from qwen_image_2.tools.cli import benchmarks, command_line
from qwen_image_2.tools.comfyui import workflow
from qwen_image_2.tools.generate import make
from qwen_image_2.tools.pack import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def command_lines() -> list[str]:
    """Of the code blocks and of the sentences; `a|b` is an alternative, of which the first is taken."""
    blocks = re.findall(r"^```\n(.*?)^```", README, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("python")]
    spans = re.findall(r"`(python[^`]+)`", re.sub(r"^```\n.*?^```", "", README, flags=re.M | re.S))
    return sorted({" ".join(shlex.split(line.replace("\n", " "), comments=True)) for line in [*lines, *spans]})


LINES = command_lines()
OF_DEV = [words for words in map(shlex.split, LINES) if words[1] == "tools/dev.py"]


@pytest.mark.parametrize("words", OF_DEV, ids=" ".join)
def test_a_command_of_dev_is_one(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = command_line.parse([word.partition("|")[0] for word in words[2:]])  # wrong arguments exit
    if options.command == "bench":
        benchmarks.chosen(options.rest)
    elif options.command == "make":
        make.check(options.target, options.rest)
    elif options.command == "run":
        graph = workflow.load(options.file)
        assert workflow.apply(graph, options.set) != graph


@pytest.mark.parametrize("line", sorted(set(LINES) - {" ".join(words) for words in OF_DEV}))
def test_another_command_starts_without_the_environment(line):
    """-S: without any installed package. pip is in the Python that a person has."""
    _, *words = line.split()
    if words[:2] == ["-m", "pip"]:
        assert importlib.util.find_spec("pip")
        return
    program = words[:2] if words[0] == "-m" else words[:1]
    done = subprocess.run([sys.executable, "-S", *program, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage"), done.stderr


def test_dev_itself_starts_without_the_environment():
    done = subprocess.run([sys.executable, "-S", command_line.DEV, "bench", "WRONG"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("Error: There is no benchmark 'WRONG'")


def test_the_readme_names_every_command_benchmark_and_target():
    options = [command_line.parse([word.partition("|")[0] for word in words[2:]]) for words in OF_DEV]
    assert {option.command for option in options} == set(command_line.COMMANDS)
    run = {benchmarks.chosen(option.rest)[0].stem for option in options if option.command == "bench"}
    assert run == set(benchmarks.present())
    assert {option.target for option in options if option.command == "make"} == set(make.TARGETS)


def test_short_names_fit_every_shipped_workflow():
    """What a person reads on a node names it, or several of its kind."""
    for file in sorted((ROOT / "workflows" / "api").glob("*.json")):
        graph = workflow.load(file)
        for node, entry in graph.items():
            for name in (entry["_meta"]["title"], entry["class_type"]):
                short = name.removesuffix(" (Qwen-Image 2)").removeprefix("QwenImage2")
                assert node in workflow.find_nodes(graph, short), f"{short} in {file.name}"
