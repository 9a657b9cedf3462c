"""What a benchmark found, as a table for people and as JSON that keeps every single value."""
import argparse
import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from bootstrap import ROOT
from timing import Comparison

from qwen_image_2.tools.cli.output import write_whole

HEADINGS = ("measurement", "first", "second", "ratio (quartiles)", "CPU time ratio", "goal", "met",
            "relative difference", "rounds")
LIBRARIES = ("torch", "diffusers", "transformers", "safetensors")


def parser(name: str, doc: str, kept: str = "the figures") -> argparse.ArgumentParser:
    """The command line of `bench NAME`, explained by the first paragraph of the program's `doc`: --save, which keeps
    what `kept` says, and what the program adds."""
    made = argparse.ArgumentParser(prog=f"bench {name}".rstrip(), description=doc.split("\n\n")[0])
    made.add_argument("--save", action="store_true", help=f"keep {kept} in benchmarks/results")
    return made


class Found(NamedTuple):
    """What a section of a benchmark has measured: for the JSON, and for people."""

    data: object
    text: str


def run(name: str, sections: Mapping[str, Callable[[], Found]], chosen: argparse.Namespace) -> None:
    """Measure the sections one after the other, all or the one that `chosen.only` names; kept with `chosen.save`."""
    before, found = host(), {}
    for section, measure in sections.items():
        if chosen.only in (None, section):
            print(f"Measuring {section} ...", flush=True)
            found[section] = measure()
            print(f"\n{found[section].text}\n", flush=True)
    if chosen.save:
        keep(name, before, {section: one.data for section, one in found.items()},
             "\n\n".join(f"## {section}\n\n{one.text}" for section, one in found.items()))


def host() -> dict[str, str | int | float]:
    """Everything about this machine and this tree that the numbers depend on."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "load average before": load_average(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "Python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
        "commit": _commit(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def load_average() -> str:
    """Over 1, 5 and 15 minutes. Before a run it tells how much other work there was; the run adds its own threads."""
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def _processor() -> str:
    """Model name and, where a virtual machine hides the name, family and model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name", platform.machine())
    return f"{name}, family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else name


def _commit() -> str:
    """The checked-out commit, and whether files differ from it."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "model", "benchmarks")
        return git("rev-parse", "HEAD") + (" with changes in model or benchmarks" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"


def table(comparisons: Iterable[Comparison]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    return aligned([HEADINGS, *map(_row, comparisons)])


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows as a Markdown table, the first one its head."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _row(c: Comparison) -> tuple[str, ...]:
    low, middle, high = c.ratio
    first, second = (_quantity(median, c.unit) for median in c.medians)
    return (
        c.what,
        f"{c.first}: {first}",
        f"{c.second}: {second}",
        f"{middle:.3f} ({low:.3f} to {high:.3f})",
        "" if c.cpu_ratio is None else f"{c.cpu_ratio:.3f}",
        "" if c.goal is None else f"at most {c.goal:g}",
        {None: "", True: "yes", False: "NO"}[c.met],
        "" if c.error is None else f"{c.error:.0e}" if c.error else "none",
        str(len(c.values)),
    )


def _quantity(value: float, unit: str) -> str:
    return f"{value / 1e9:.2f} GB" if unit == "B" else f"{value:.3f} {unit}"


def listing(entries: dict[str, object]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in entries.items())


def save(name: str, host: dict, settings: dict[str, str], comparisons: list[Comparison]) -> list[Path]:
    """Keep comparisons in benchmarks/results."""
    found = [dataclasses.asdict(c) | {"ratio": c.ratio, "cpu_ratio": c.cpu_ratio, "met": c.met} for c in comparisons]
    return keep(name, host, {"settings": settings, "comparisons": found},
                f"{listing(settings)}\n\n{table(comparisons)}")


def keep(name: str, host: dict, data: dict, text: str) -> list[Path]:
    """Write benchmarks/results/NAME-DATE-HOSTKIND.json and .md, and say so. The host's "kind" is by default its number
    of processor cores."""
    folder = ROOT / "benchmarks" / "results"
    kind = host.get("kind", f"cpu{host['cores']}")
    stem = folder / f"{name}-{host['date'][:10]}-{kind}"
    contents = {".json": json.dumps({"host": host, **data}, indent=1) + "\n",
                ".md": f"# {name}\n\n{listing(host)}\n\n{text}\n"}
    return [keep_file(stem.with_suffix(suffix), content.encode()) for suffix, content in contents.items()]


def keep_file(path: Path, content: bytes) -> Path:
    """Write a file of benchmarks/results, and say so."""
    write_whole(path, content)
    print(f"Saved {path.relative_to(ROOT)}")
    return path
