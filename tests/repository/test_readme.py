"""Every command line that the documentation names works from a clean clone, and the README is short."""

import importlib.util
import subprocess
import sys

import pytest

from qwen_image_2.tests.repository import markdown
from qwen_image_2.tools.cli import benchmarks, command_line
from qwen_image_2.tools.comfyui import workflow
from qwen_image_2.tools.generate import make
from qwen_image_2.tools.pack import ROOT

README_LINES = 150
LINES = sorted(set().union(*(markdown.command_lines(markdown.read(document)) for document in markdown.guides())))
OF_DEV = [words for words in LINES if words[1] == "tools/dev.py"]


def arguments(words: tuple[str, ...]) -> list[str]:
    """Those of dev.py; `a|b` is an alternative, of which the first is taken."""
    return [word.partition("|")[0] for word in words[2:]]


def test_the_readme_is_short():
    assert len(markdown.read("README.md").splitlines()) <= README_LINES


def test_the_readme_names_the_two_commands_to_begin_with():
    found = markdown.command_lines(markdown.read("README.md"))
    assert {("python", "tools/dev.py", "demo"), ("python", "tools/dev.py", "test")} <= found


@pytest.mark.parametrize("words", OF_DEV, ids=" ".join)
def test_a_command_of_dev_is_one(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = command_line.parse(arguments(words))  # wrong arguments exit
    if options.command == "bench":
        benchmarks.chosen(options.rest)
    elif options.command == "make":
        make.check(options.target, options.rest)
    elif options.command == "run":
        graph = workflow.load(options.file)
        assert workflow.apply(graph, options.set) != graph


@pytest.mark.parametrize("words", sorted(set(LINES) - set(OF_DEV)), ids=" ".join)
def test_another_command_starts_without_the_environment(words):
    """-S: without any installed package. pip is in the Python that a person has."""
    if words[1:3] == ("-m", "pip"):
        assert importlib.util.find_spec("pip")
        assert "-r" not in words or words[words.index("-r") + 1].endswith("/requirements.txt")
        return
    program = words[1:3] if words[1] == "-m" else words[1:2]
    done = subprocess.run([sys.executable, "-S", *program, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage"), done.stderr


def test_dev_itself_starts_without_the_environment():
    done = subprocess.run([sys.executable, "-S", command_line.DEV, "bench", "WRONG"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("Error: There is no benchmark 'WRONG'")


def test_the_documentation_names_every_command_benchmark_and_target():
    options = [command_line.parse(arguments(words)) for words in OF_DEV]
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
