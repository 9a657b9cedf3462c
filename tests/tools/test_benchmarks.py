"""The benchmarks that need much time, room or a graphics card: at their miniature size they run, and measure what they
say."""
import os
import re
import subprocess
import sys

import pytest

from qwen_image_2.tools.pack import ROOT

BENCHMARKS = ROOT / "benchmarks"
QUANTISED = ("int8 (ConvRot)", "fp8")


@pytest.fixture(scope="module")
def run(comfyui_path):
    """The finished process of one benchmark. Each puts the pack's root on sys.path, so none is imported here."""
    def start(name: str, *arguments: str) -> subprocess.CompletedProcess:
        settings = {**os.environ, "COMFYUI_PATH": str(comfyui_path), "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments], env=settings,
                              capture_output=True, text=True, timeout=900)
    return start


def table(text: str) -> dict[str, dict[str, str]]:
    """The rows of the Markdown table in a text, by their first cell."""
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")]
                      for line in text.splitlines() if line.startswith("|")]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_load_measures_every_format_and_leaves_no_file(run, tmp_path):
    done = run("load", "--small", "--folder", str(tmp_path), "--threads", "1")
    assert done.returncode == 0, done.stderr
    found = table(done.stdout)
    assert list(found) == ["bf16", "int8 while loading", "GGUF Q4_K"]
    size = {name: {key: float(row[key].removesuffix(" GB")) for key in ("file", "kept", "peak then")}
            for name, row in found.items()}
    assert size["bf16"]["file"] == size["bf16"]["kept"] == size["int8 while loading"]["file"]
    assert size["int8 while loading"]["kept"] < size["bf16"]["kept"]
    assert all(row["peak then"] >= 0.9 * row["kept"] for row in size.values())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_load_refuses_a_folder_without_room(run, tmp_path):
    done = run("load", "--only", "bf16", "--layers", "3000", "--folder", str(tmp_path))
    assert done.returncode == 1
    assert re.search(r"has [\d.]+ GB, but the file takes 1\d\d\d\.\d GB, .*name a folder with more room", done.stderr)
    assert not list(tmp_path.iterdir())


def test_gpu_measures_steps_of_every_format_and_share(run):
    done = run("gpu", "--small")
    assert done.returncode == 0, done.stderr
    found = table(done.stdout)
    for kind in ("bf16", *QUANTISED):
        for side in (64, 96):
            for what in ("no reference", "an edit"):
                for share in ("100%", "50%", "0%"):
                    row = found[f"{kind}, {side} x {side}, {what}, {share} resident"]
                    assert float(row["ms"]) > 0 and float(row["floor (ms)"]) > 0
                    if (kind, share) == ("bf16", "100%"):
                        assert 0 < float(row["difference"]) < 1e-4
                        assert float(row["diffusers (ms)"]) > 0
    for form in ("ComfyUI's order", "cuDNN first"):
        assert float(found[f"attention of 32 tokens, {form}"]["difference"]) < 1e-2
    for type_name in ("Q8_0", "Q6_K", "Q5_K", "Q4_K"):
        for form in ("PyTorch's operations", "the pack's choice"):
            one = found[f"GGUF {type_name} of 1,536 x 256, {form}"]
            assert float(one["floor (ms)"]) >= 0 and float(one["difference"]) < 1e-2
    for what in ("SwiGLU of 36 tokens", "norm and SiLU of 6 rows"):
        for form in ("PyTorch's operations", "the pack's choice"):
            assert float(found[f"{what}, {form}"]["difference"]) < 1e-2
    assert re.search(r"^cuDNN's attention is (not )?the faster one", done.stdout, re.M)
    for form in ("", ", doublings as nearest and 3x3", ", the same in channels_last"):
        assert float(found[f"VAE decode, 96 x 96{form}"]["ms"]) > 0
    assert "Left out" not in done.stdout


@pytest.fixture(scope="module")
def without_time(run):
    done = run("gpu", "--small", "--seconds", "0")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_gpu_says_what_it_had_no_time_for(without_time):
    assert re.findall(r"^- (.*) \(no time was left\)$", without_time, re.M) == [
        "attention", "GGUF", "SwiGLU and norms", "bf16, all sizes", "int8 (ConvRot), all sizes", "fp8, all sizes",
        "VAE decode, 96 x 96"]


def test_gpu_does_not_pass_a_cpu_off_as_a_card(run, without_time):
    import torch
    assert torch.cuda.is_available() != ("no figure above is one of a graphics card" in without_time)
    if not torch.cuda.is_available():
        refused = run("gpu")
        assert refused.returncode == 2
        assert "PyTorch sees no CUDA device here. --small runs a miniature size on the CPU." in refused.stderr


FLOOR = """
import floor, torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

class Names(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if not function.is_view:
            names.add(function.overloadpacket.__name__)
        return function(*arguments, **(options or {}))

layers = nn.ModuleList([nn.Conv2d(4, 8, 3, padding=1), nn.Linear(8, 8)])
x = torch.randn(2, 4, 6, 5)

def way():
    y = torch.relu(layers[1](layers[0](x).flatten(2).transpose(1, 2)))
    return nn.functional.scaled_dot_product_attention(y, y, y)

with torch.no_grad():
    alone, counts, names = floor.products_alone(way, layers), [], set()
    for one in (way, alone):
        with FlopCounterMode(display=False) as counter:
            one()
        counts.append(counter.get_total_flops())
    with Names():
        alone()
    assert counts[0] == counts[1] > 0, counts
    assert all(name in floor.PRODUCTS or name.startswith(floor.ATTENTION) for name in names), names
"""


def test_a_floor_is_the_arithmetic_and_nothing_else():
    done = subprocess.run([sys.executable, "-c", FLOOR], cwd=BENCHMARKS, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_host_counts_launches_and_times_a_step(run):
    done = run("host", "--rounds", "3")
    assert done.returncode == 0, done.stderr
    found = table(done.stdout)
    assert list(found) == ["text to image", "edit with one reference"]
    for row in found.values():
        # 4 products, 4 operations of norms and gates twice, rotations, joint keys and values, SwiGLU, attention.
        assert 20 <= float(row["of them a block"]) <= 60
        assert float(row["of them a block"]) * 32 < int(row["launches"]) < float(row["of them a block"]) * 32 + 60
        assert float(row["calls a block"]) * 32 < int(row["calls"].replace(",", ""))


def test_startup_measures_both_starts(run):
    done = run("startup", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    first, other = (table(done.stdout)[start] for start in ("first after an installation", "every other"))
    assert all(0 < float(start["seconds"]) < 60 for start in (first, other))


@pytest.fixture(scope="module")
def family1(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family1")
    done = run("family1", "--small", "--folder", str(folder))
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    return dict(part.split(" ...\n", 1) for part in done.stdout.split("Measuring ")[1:])


def test_family1_times_steps_beside_diffusers(family1):
    found = table(family1["step"])
    assert list(found) == ["step, text to image", "step, edit with one reference"]
    assert all(float(row["relative difference"]) < 1e-4 and int(row["rounds"]) for row in found.values())


def test_family1_shows_where_core_differs(family1):
    """And where it does not: beside these cases the others mean something."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in family1["core"].splitlines()
            if line.startswith("| ") and "ComfyUI's setting" not in line]
    assert len(rows) == 16 and all(float(ours) < 1e-5 for _, _, ours, _ in rows)
    equal = {(what, setting) for what, setting, _, core in rows if float(core) < 1e-5}
    assert equal == {("velocity, 1024 x 1024", ""),
                     ("velocity, edit at 1024 x 1024, reference as large", ""),
                     ("velocity, Edit-2511 at 1024 x 1024, reference as large",
                      "file with the mark, or its reference method node")}


def test_family1_counts_the_published_bytes(family1):
    found = table(family1["bytes"])
    assert [*found["bf16"].values()][1:] == ["40.86 GB", "27.27 GB"]
    assert [*found["fp8, plain cast"].values()][1:] == ["20.43 GB", "13.63 GB"]
    assert "in bf16: 4.42 MB" in family1["bytes"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_family1_keeps_plain_fp8_as_it_is(family1):
    row, = table(family1["load"]).values()
    assert row["file"] == row["kept"] and "not measured" not in family1["load"]


def test_upscale_measures_pictures_and_counts_the_published_size(run):
    done = run("upscale", "--small")
    assert done.returncode == 0, done.stderr
    quality, rest = done.stdout.split("Measuring speed")
    speed, counted = rest.split("Measuring counted")
    rows = table(quality)
    assert list(rows) == ["sigma 0.1, as drawn", "sigma 0.1, as the node gives it"]
    for row in rows.values():
        assert float(row["shift (px): median"]) < 0.5 and float(row["colours (CIE): mean"]) < 2
        assert row["words right before"] == row["after"] == "1"
    assert 0 < float(rows["sigma 0.1, as drawn"]["gradient at tile borders / elsewhere"]) < 1.5, "of a single picture"
    assert table(speed)["256 x 256"]["tiles of the last pass"] == "9"
    assert "25 tiles of 960 x 960, 8 of 40 steps from sigma 0.3" in counted
    assert [row["tiles at once"] for row in table(counted).values()] == ["3", "4", "5"]


def test_control_times_steps_with_and_without_the_cache_and_counts_bytes(run):
    done = run("control", "--small")
    assert done.returncode == 0, done.stderr
    steps, sizes = done.stdout.split("Measuring bytes")
    rows = [line for line in steps.splitlines() if line.startswith("| controlled step")]
    assert len(rows) == 6 and sum("all rows anew" in row for row in rows) == 3
    found = table(sizes)
    for references, tokens in ((0, 256), (1, 4352), (3, 12544)):
        row = found[f"256 text tokens, {references} references"]
        assert row["tokens"] == f"{tokens:,}"
        assert row["KV cache"] == f"{tokens * 3 * 2**18 / 2**30:.2f} GiB", "512 KiB a token, and half of that"
        assert row["of it the control's"] == f"{tokens * 2**18 / 2**30:.2f} GiB"
    assert "control network 7.55 GB" in sizes


def test_repair_edits_checks_and_keeps_the_bits_outside(run):
    pytest.importorskip("rapidocr")
    done = run("repair", "--small", "--pictures", "1")
    assert done.returncode == 0, done.stderr
    found = table(done.stdout)
    assert found["got worse"]["value"] == "0"
    assert re.search(r"^1\. \w+ -> \w+: (passed|failed) after 1, score ", done.stdout, re.M)
    assert found["pass after at most 3 rounds"]["goal"] == "at least 0.85"
