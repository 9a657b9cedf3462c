"""No child process outlives the process that started it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from qwen_image_2.tools.cli import process
from qwen_image_2.tools.pack import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

# Starts a child of its own, says its process id, and ignores the polite request to end.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
# What dev.py does: start a child with process.start and wait for it.
PARENT = """
import sys; sys.path.insert(0, sys.argv[1])
from pack import load_pack; load_pack()
from qwen_image_2.tools.cli import process
child = process.start([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""


def is_gone(pid, seconds=5.0):
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_stop_ends_the_whole_group_even_if_it_does_not_listen():
    child = process.start([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True)
    grandchild = int(child.stdout.readline())
    process.stop(child, patience=0.3)
    assert child.returncode == -signal.SIGKILL
    assert is_gone(grandchild)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child to its parent")
def test_killed_parent_takes_its_child_along():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(ROOT / "tools")], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    assert is_gone(child)


def test_foreground_command_keeps_its_exit_code():
    assert process.run_foreground([sys.executable, "-c", "raise SystemExit(5)"]) == 5
    assert process.run_foreground([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 128 + 9
