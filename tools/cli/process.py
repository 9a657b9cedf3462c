"""Child processes that never outlive this one.

A child that is started here leads its own process group, so that Ctrl-C in a terminal reaches this process only, which
then ends the whole group in order. If this process is killed outright, Linux ends the child as well (PR_SET_PDEATHSIG);
macOS and Windows have no such call, there a kill -9 of this process leaves the child to be ended by hand.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

WINDOWS = os.name == "nt"
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def start(command: Sequence[str | Path], **options) -> subprocess.Popen:
    """Start `command` as the leader of its own process group, without a terminal to read from.

    Linux ties the child to the thread that calls this: it ends when that thread ends.
    """
    if WINDOWS:
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
    else:
        options["start_new_session"] = True
    return subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, **_tied(), **options)


def stop(child: subprocess.Popen, patience: float = 10.0) -> None:
    """End a child of `start` and all that it started: ask first, kill after `patience` seconds or a second Ctrl-C."""
    try:
        if child.poll() is None:
            _signal_group(child, "SIGTERM")
            child.wait(patience)
    except subprocess.TimeoutExpired:
        pass  # the kill below is the answer
    finally:
        _signal_group(child, "SIGKILL")
        child.wait()


def run_logged(command: Sequence[str | Path], log: Path, on_wait: Callable[[float], None], **options) -> int:
    """Run `command` to its end with its output appended to `log`; `on_wait(seconds)` is called once a minute."""
    begin = time.monotonic()
    with open(log, "ab") as stream:
        child = start(command, stdout=stream, stderr=subprocess.STDOUT, **options)
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return child.wait(60)
                on_wait(time.monotonic() - begin)
        finally:
            stop(child)


def run_foreground(command: Sequence[str | Path], **options) -> int:
    """Run `command` in this terminal (it may ask questions there) and return its exit code.

    Ctrl-C in a terminal reaches the child by itself; without a terminal it is passed on. Either way the child gets
    the time to take down what it has set up.
    """
    child = subprocess.Popen([str(part) for part in command], **_tied(), **options)
    try:
        code = child.wait()
    except (KeyboardInterrupt, SystemExit):
        if not sys.stdin.isatty() and not WINDOWS:
            child.send_signal(signal.SIGINT)
        _wait_or_kill(child, 15.0)
        raise
    return code if code >= 0 else 128 - code  # a child that died of signal n reports -n, a shell 128 + n


def _wait_or_kill(child: subprocess.Popen, patience: float) -> None:
    try:
        child.wait(patience)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _tied() -> dict:
    """Popen option that ends the child with this process, where the system can."""
    return {"preexec_fn": functools.partial(_end_with_parent, os.getpid())} if _LIBC else {}


def _end_with_parent(parent: int) -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call above: nobody would send the signal any more
        os._exit(1)


def _signal_group(child: subprocess.Popen, name: str) -> None:
    if WINDOWS:
        if child.poll() is None:
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(child.pid)], capture_output=True, check=False)
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the group has ended (macOS says "permission")
        os.killpg(child.pid, getattr(signal, name))
