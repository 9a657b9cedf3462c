"""A workflow over a table, with workers that stand in: nothing lost, nothing twice, one sentence for each mistake."""
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc

import pytest

from qwen_image_2 import atomic
from qwen_image_2.pages import table
from qwen_image_2.tools.cli import command_line, environment
from qwen_image_2.tools.cli.errors import UserError
from qwen_image_2.tools.comfyui.server import free_port
from qwen_image_2.tools.pack import ROOT
from qwen_image_2.tools.render import command, driver, journal, machines, plan, pools, ray_pool, summary

STAND_IN = "qwen_image_2.tests.tools.render.stand_in:StandIn"
GRAPH = {"1": {"class_type": "Text", "inputs": {"text": "{{text}}", "seed": 0}},
         "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "page"}}}
NAMED = {**GRAPH, "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "{{name}}"}}}


@pytest.fixture
def rows(tmp_path):
    """A table of texts; its names are a, b, c and so on."""
    def make(*texts, seeds=None):
        lines = [f"{text},{chr(97 + number % 26)}{number // 26 or ''},{(seeds or range(999999))[number]}"
                 for number, text in enumerate(texts)]
        (tmp_path / "rows.csv").write_text("\n".join(["text,name,seed", *lines]))
        return table.read(tmp_path / "rows.csv")

    return make


@pytest.fixture
def draw(tmp_path, rows):
    """Draw texts with one stand-in; returns the exit code. What it has drawn is in `drawn`."""
    def carry_out(*texts, graph=GRAPH, sets=(), pool=None, **settings):
        made = plan.make(graph, list(sets), rows(*texts))
        (tmp_path / "out").mkdir(exist_ok=True)
        pool = pool or pools.Plain(pools.WorkerKind(STAND_IN, {"drawn": tmp_path / "drawn", **settings}))
        return command.carry_out(made, pool, tmp_path / "out", "page.json")

    return carry_out


@pytest.fixture
def drawn(tmp_path):
    return lambda: [int(line) for line in (tmp_path / "drawn").read_text().split()]


def pictures(folder):
    return sorted(path.name for path in folder.glob("*.png"))


def entries(folder):
    return [json.loads(line) for line in (folder / journal.NAME).read_text().splitlines()]


# ---------------------------------------------------------------- nothing lost, nothing twice

def test_a_row_is_a_picture_a_line_and_a_thumbnail(draw, tmp_path, capsys):
    assert draw("one", "to") == 0
    out = tmp_path / "out"
    assert pictures(out) == ["page_00001.png", "page_00002.png"]
    assert [(entry["row"], entry["state"], entry["files"]) for entry in entries(out)] == [
        (1, "done", ["page_00001.png"]), (2, "done", ["page_00002.png"])]
    assert (out / "thumbnails" / "page_00001.png.jpg").read_bytes().startswith(b"\xff\xd8")
    found = json.loads((out / summary.SUMMARY).read_text())
    assert (found["done"], found["failed"], found["left"]) == (2, [], 0)
    assert found["text_check"] == {"expected_lines": 2, "found_lines": 1}
    sheet = (out / summary.SHEET).read_text()
    assert 'src="thumbnails/page_00002.png.jpg"' in sheet and "0 of 1 lines found" in sheet and "one &rarr; on" in sheet
    assert "2 of 2 rows done, 0 failed, 0 left" in capsys.readouterr().out


def test_the_same_command_draws_nothing_twice(draw, drawn, tmp_path):
    for _ in range(2):
        draw("one", "two", "three")
    assert drawn() == [1, 2, 3]
    (tmp_path / "out" / "page_00002.png").unlink()  # somebody wants it anew
    draw("one", "two", "three", "four")
    assert drawn() == [1, 2, 3, 2, 4]
    draw("one", "2", "three", "four")
    assert drawn()[5:] == [2] and "page_00002-2.png" in pictures(tmp_path / "out")  # nothing is overwritten


def test_a_row_that_is_refused_does_not_stop_the_others(draw, tmp_path, capsys):
    assert draw("one", "refuse", "=1", "four") == 1
    assert pictures(tmp_path / "out") == ["page_00001.png", "page_00004.png"]
    printed = capsys.readouterr().out
    assert "Row 2 failed: Node 1 (Text): the text is refused." in printed
    assert "Row 3 failed: Row 3, column 'text': it begins with \"=\"" in printed
    assert draw("one", "two", "three", "four") == 0
    assert not json.loads((tmp_path / "out" / summary.SUMMARY).read_text())["failed"]


def test_a_row_that_a_worker_loses_is_tried_three_times(draw, drawn, tmp_path, capsys):
    assert draw("lose once", "two", "lose", "four") == 1
    assert sorted(drawn()) == [1, 1, 2, 3, 3, 3, 4]
    assert pictures(tmp_path / "out") == ["page_00001.png", "page_00002.png", "page_00004.png"]
    assert "Row 3 failed: 3 workers ended while they drew this row: ComfyUI ended" in capsys.readouterr().out


@pytest.mark.parametrize("cut", [1, 30])
def test_a_crash_between_the_line_and_its_files_draws_the_row_again(cut, draw, drawn, tmp_path):
    """And a line that was cut short counts as none."""
    draw("one", "two")
    book, out = tmp_path / "out" / journal.NAME, tmp_path / "out"
    if cut == 1:
        (out / "page_00002.png").unlink()
    else:
        book.write_bytes(book.read_bytes()[:-cut])
        (out / "page_00002.png").unlink()  # the line comes first
    draw("one", "two", "three")
    assert drawn() == [1, 2, 2, 3] and pictures(out) == [f"page_0000{row}.png" for row in (1, 2, 3)]
    assert draw("one", "two", "three") == 0 and len(drawn()) == 4


def test_a_full_disk_stops_and_loses_nothing(draw, drawn, tmp_path, monkeypatch, capsys):
    real, count = atomic.os.fsync, 0

    def full(descriptor):
        nonlocal count
        count += 1
        if 8 <= count < 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(atomic.WriteError, match="the disk is full"):
        draw("one", "two", "three", "four")
    assert "The same command goes on from here." in capsys.readouterr().out
    before = pictures(tmp_path / "out")
    count = 100
    assert draw("one", "two", "three", "four") == 0
    assert before and pictures(tmp_path / "out") == [f"page_0000{row}.png" for row in (1, 2, 3, 4)]
    assert not list((tmp_path / "out").glob("*.part"))


def test_two_renders_of_one_folder_do_not_meet(draw, tmp_path):
    draw("one")
    with journal.opened(tmp_path / "out"), pytest.raises(UserError, match="Another render writes into"):
        draw("one", "two")


STOPPED = """
import sys
sys.path.insert(0, {tools!r})
from pack import load_pack
load_pack()
from pathlib import Path
from qwen_image_2.pages import table
from qwen_image_2.tools.cli import command_line
from qwen_image_2.tools.render import command, plan, pools
import json
command_line.catch_signals()
folder = Path({folder!r})
made = plan.make(json.loads((folder / "graph.json").read_text()), [], table.read(folder / "rows.csv"))
kind = pools.WorkerKind({target!r}, dict(drawn=folder / "drawn", seconds=1.5))
try:
    sys.exit(command.carry_out(made, pools.Plain(kind), folder / "out", "page.json"))
except KeyboardInterrupt:
    sys.exit(131)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("presses, code, done", [(1, 130, [1]), (2, 131, [])])
def test_ctrl_c_waits_for_the_row_in_hand_and_twice_does_not(presses, code, done, draw, rows, tmp_path):
    rows("one", "two", "three")
    (tmp_path / "out").mkdir()
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    program = STOPPED.format(tools=str(ROOT / "tools"), folder=str(tmp_path), target=STAND_IN)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "drawn").exists():
        assert process.poll() is None
        time.sleep(0.02)
    for _ in range(presses):
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Stopping after the rows in hand" in printed and (presses == 1 or "The same command goes on" in printed)
    assert pictures(tmp_path / "out") == [f"page_0000{row}.png" for row in done]
    assert draw("one", "two", "three") == 0 and len(pictures(tmp_path / "out")) == 3


def test_memory_is_flat_however_many_rows(tmp_path, rows, monkeypatch):
    """What the driver keeps of a row is its line, not its picture or its graph."""
    monkeypatch.setattr(driver, "thumbnail", lambda folder, name: None)
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: None)
    graph = {**GRAPH, "3": {"class_type": "Text", "inputs": {"text": "x" * 20_000}}}
    made = plan.make(graph, [], rows(*["to"] * 201))
    (tmp_path / "out").mkdir()
    pool = pools.Plain(pools.WorkerKind(STAND_IN, {"drawn": tmp_path / "drawn"}))
    sizes = []
    with journal.opened(tmp_path / "out") as book:
        tracemalloc.start()

        def show(counts):
            if counts.drawn in (100, 200):
                sizes.append(tracemalloc.get_traced_memory()[0])
            if counts.drawn == 200:
                raise StopIteration

        with pytest.raises(StopIteration):
            driver.Driver(made, pool, book, driver.Stop(print), show).run()
        tracemalloc.stop()
    assert (sizes[1] - sizes[0]) / 100 < 4000  # bytes a row, of 20,000 that its graph has


# ---------------------------------------------------------------- what a row fills in

def test_texts_numbers_and_names(draw, tmp_path, rows):
    made = plan.make(NAMED, ["1.seed={{seed}}"], rows("Käse", "two", seeds=[7, "high"]))
    first, second = (made.job(row) for row in made.rows.rows)
    assert first.graph["1"]["inputs"] == {"text": "Käse", "seed": 7} and second.graph["1"]["inputs"]["seed"] == "high"
    assert first.graph["2"]["inputs"]["filename_prefix"] == "a" and made.unused() == []
    draw("one", "two", graph=NAMED)
    assert pictures(tmp_path / "out") == ["a.png", "b.png"]


def test_a_row_keeps_its_picture_where_the_table_moves(tmp_path):
    """Named by a column, a row may stand anywhere; named by its number, it may not."""
    for graph, same in ((NAMED, True), (GRAPH, False)):
        keys = []
        for content in ("text,name\nx,a\n", "text,name\ny,b\nx,a\n"):
            (tmp_path / "rows.csv").write_text(content)
            made = plan.make(graph, [], table.read(tmp_path / "rows.csv"))
            keys.append(made.job(made.rows.rows[-1]).key)
        assert (keys[0] == keys[1]) == same


def test_pictures_by_path(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").write_bytes(b"")
    graph = {**GRAPH, "3": {"class_type": "LoadImage", "inputs": {"image": "{{text}}"}}}
    made = plan.make(graph, [], rows("one", "two"))
    job = made.job(made.rows.rows[0])
    assert job.graph["3"]["inputs"]["image"] == str(tmp_path / "one") and job.own_pictures == (("3", "image"),)
    with pytest.raises(UserError, match=r"Row 2: there is no picture file .*two"):
        made.job(made.rows.rows[1])


# ---------------------------------------------------------------- one sentence

@pytest.mark.parametrize("graph, sets, sentence", [
    (GRAPH, ["1.text={{tilte}}"], r"no column 'tilte', .* text, name, seed"),
    (GRAPH, ["1.text=same"], r"all rows would be the same: write \{\{text\}\}"),
    ({"1": GRAPH["1"]}, [], "saves nothing"),
    (GRAPH, ["2.filename_prefix={{text}}"], r"2 rows would .*row 1 \(same\), row 2 \(same\)")])
def test_plans_that_cannot_be(graph, sets, sentence, rows):
    with pytest.raises(UserError, match=sentence):
        plan.make(graph, sets, rows("same", "same", "other"))


@pytest.mark.parametrize("words, sentence", [
    (["{ui}", "--table", "{rows}"], "is a workflow in the format of ComfyUI's page; .*api"),
    (["{graph}", "--table", "{folder}/none.csv"], "none.csv cannot be read: No such file"),
    (["{graph}", "--table", "{folder}/empty.csv"], "has no rows below its header"),
    (["{graph}", "--table", "{folder}/large.csv"], "has 100 MB; a table has at most"),
    (["{graph}", "--table", "{folder}/none.xlsx"], "There is no file"),
    (["{graph}", "--table", "{rows}", "--set", "1.text={{none}}"], "no column 'none'"),
    (["{graph}", "--table", "{rows}", "--comfyui", "{folder}"], "is not a ComfyUI folder")])
def test_mistakes_are_one_sentence_before_any_work(words, sentence, rows, tmp_path, capsys):
    rows("one")
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    (tmp_path / "empty.csv").write_text("text\n")
    with open(tmp_path / "large.csv", "wb") as file:
        file.truncate(100_000_000)
    places = {"graph": tmp_path / "graph.json", "rows": tmp_path / "rows.csv", "folder": tmp_path,
              "ui": ROOT / "workflows" / "poster.json"}
    words = ["render", *(word if "{{" in word else word.format(**places) for word in words),
             "--out", str(tmp_path / "out")]
    assert command_line.main(words) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("Error: ") and errors.count("\n") == 1
    assert re.search(sentence, errors)


def test_what_stops_before_the_first_row(draw, drawn, tmp_path):
    with pytest.raises(UserError, match="ComfyUI ended with exit code 1"):
        draw("one", starts=False)
    with pytest.raises(UserError, match=r"Model files are missing: model on here \(this machine\)"):
        draw("one", model=machines.MISSING)
    assert not (tmp_path / "drawn").exists()


def test_machines_that_differ_are_named():
    here = {"machine": "one", "the pack": "1", "m.safetensors": "5 bytes, a"}
    machines.compare({"worker 1": here, "worker 2": {**here, "machine": "two"}})
    with pytest.raises(UserError, match=r"m\.safetensors is 6 bytes, b on two \(worker 2\) and 5 bytes, a on one"):
        machines.compare({"worker 1": here, "worker 2": {**here, "machine": "two", "m.safetensors": "6 bytes, b"}})


def test_model_files_by_size_and_head(tmp_path, comfyui_path):
    graph = {"1": {"class_type": "Load", "inputs": {"vae": "a.safetensors", "clip": "none.gguf", "text": "a.png"}}}
    files = machines.model_files(graph)
    (tmp_path / "vae").mkdir()
    found = []
    for content in (b"a" * 2 ** 20 + b"x", b"a" * 2 ** 20 + b"y", b"b" + b"a" * 2 ** 20):
        (tmp_path / "vae" / "a.safetensors").write_bytes(content)
        found.append(machines.facts(comfyui_path, tmp_path, files))
    values = [one["a.safetensors"] for one in found]
    assert values[0] == values[1] != values[2] and found[0]["none.gguf"] == machines.MISSING
    assert found[0]["ComfyUI"].startswith("0.") and set(files) == {"a.safetensors", "none.gguf"}


def test_an_address_where_nobody_answers(monkeypatch):
    begin = time.monotonic()
    for address in (f"127.0.0.1:{free_port()}", f"ray://127.0.0.1:{free_port()}"):
        with pytest.raises(UserError, match="no Ray cluster answers there"):
            ray_pool.require_answer(address)
    assert time.monotonic() - begin < 10
    for address in ("head", "127.0.0.1:", ":6379x"):
        with pytest.raises(UserError, match="expected HOST:PORT"):
            ray_pool.require_answer(address)


def test_without_ray_one_sentence(monkeypatch):
    monkeypatch.setattr(ray_pool.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'-m pip install "ray\[default\]"'):
        ray_pool.require_ray()


def test_the_comfyui_that_holds_the_pack(tmp_path):
    pack = tmp_path / "custom_nodes" / "qwen-image-2"
    pack.mkdir(parents=True)
    assert environment.comfyui_around(pack) is None
    (tmp_path / "main.py").touch()
    assert environment.comfyui_around(pack) == tmp_path and environment.comfyui_around(tmp_path) is None


# ---------------------------------------------------------------- Ray

def test_ray_draws_every_row_once_though_a_worker_dies(draw, drawn, tmp_path):
    """A smoke test: two actors on this machine, one of which is killed with a row in hand."""
    pytest.importorskip("ray", reason='Ray is not installed: pip install "ray[default]"')
    kind = pools.WorkerKind(STAND_IN, {"drawn": tmp_path / "drawn", "seconds": 0.2})
    texts = ["one", "two", "kill", "four", "refuse", "six", "seven", "eight"]
    assert draw(*texts, pool=ray_pool.RayPool(kind, 2, None)) == 1
    assert sorted(drawn()) == [1, 2, 3, 3, 4, 5, 6, 7, 8]
    found = {entry["row"]: entry for entry in entries(tmp_path / "out")}
    assert [found[row]["state"] for row in sorted(found)] == ["done"] * 4 + ["failed"] + ["done"] * 3
    assert found[3]["tries"] == 2 and {entry.get("worker") for entry in found.values()} >= {"worker 1", "worker 2"}
