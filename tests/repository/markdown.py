"""The repository's Markdown, as the tests read it: which files there are, their commands, links and anchors."""
import re
import shlex
import subprocess
from functools import cache

from qwen_image_2.tools.pack import ROOT

# Written by programs: the nodes' help pages, which ComfyUI shows by itself, and what benchmarks have measured.
GENERATED = ("js/docs/", "benchmarks/results/")
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.M | re.S)


@cache
def documents() -> tuple[str, ...]:
    """Paths of all Markdown files that git tracks, or would."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:  # an unpacked archive: no folder of it may be a person's own
        return tuple(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.rglob("*.md")))
    return tuple(sorted(path for path in set(found.stdout.split("\0")) if path and (ROOT / path).is_file()))


def guides() -> tuple[str, ...]:
    """Those that are written for people to read."""
    return tuple(path for path in documents() if not path.startswith(GENERATED))


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def without_blocks(text: str) -> str:
    return BLOCK.sub("", text)


def command_lines(text: str) -> set[tuple[str, ...]]:
    """The words of each command line in code blocks and in sentences."""
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines() if line.startswith("python ")]
    spans = re.findall(r"`(python [^`]+)`", without_blocks(text))
    return {tuple(shlex.split(line.replace("\n", " "), comments=True)) for line in [*lines, *spans]}


def links(text: str) -> set[str]:
    """Targets of links and images that lie in this repository."""
    prose = re.sub(r"`[^`\n]*`", "", without_blocks(text))
    found = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r"""(?:src|href)=["']([^"']+)""", prose)
    return {link for link in found if not re.match(r"[a-z]+:", link)}


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} (.+)$", without_blocks(text), re.M):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return set(found)


def broken_links(document: str) -> list[str]:
    """Links of a document to a file or an anchor that is not there."""
    broken = []
    for link in links(read(document)):
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def named_files(text: str) -> set[str]:
    """Paths below the repository that a text names in code or in a command. * and NAME stand for any name."""
    code = re.findall(r"`([^`\s<]+/[^`\s<]+\.(?:py|md|json|js))`", text)
    commands = [word for words in command_lines(text) for word in words
                if re.fullmatch(r"(?:tools|benchmarks|workflows)/\S+\.\w+", word)]
    return {path.replace("NAME", "*") for path in [*code, *commands]}


def section(document: str, heading: str) -> str:
    """What stands below a heading of the second level."""
    return re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", read(document), re.M | re.S)[1]


def exists(pattern: str) -> bool:
    return any(True for _ in ROOT.glob(pattern))
