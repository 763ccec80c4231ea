"""A process is started without holding up the loop, which renews a lease meanwhile."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bpf.loading.spawn import Process
from tests.tree import TREE

FORKS = re.compile(r"subprocess\.(?:Popen|run|check_output|check_call|call)\(|create_subprocess|os\.(?:fork|posix_spawn|spawn)")
ALLOWED = {
    "ctl/cli",  # another process than the daemon
    "ctl/web",  # so is this
    "ctl/runtime/command_helper.py",  # and this
    "ctl/runtime/commands.py",  # starts that, once, when the first command is due
}
MEASURE = """
import os, statistics, subprocess, sys, threading, time
from bpf.loading.spawn import Process
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(6)]
os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(2))
nothing = os.open(os.devnull, os.O_RDWR)

def with_subprocess():
    subprocess.Popen(["/bin/true"]).wait()

def with_spawn():
    child = Process(["/bin/true"], {}, nothing, nothing, nothing)
    child.wait(20)
    child.end()

def lag_of(start):
    late, ended = 0.0, threading.Event()

    def work():
        start()
        ended.set()

    threading.Thread(target=work).start()
    while not ended.is_set():
        due = time.monotonic() + 0.001
        time.sleep(0.001)
        late = max(late, time.monotonic() - due)
    return late

try:
    print(*(statistics.median(lag_of(start) for _ in range(5)) for start in (with_subprocess, with_spawn)))
finally:
    for each in busy:
        each.kill()
"""


def test_it_runs_with_its_files_and_environment(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+b") as out, (tmp_path / "errors").open("w+b") as errors, Path(os.devnull).open() as nothing:
        program = "import os, sys; print(os.environ['WORD']); sys.stderr.write('no'); sys.exit(3)"
        process = Process([sys.executable, "-c", program], {"WORD": "yes"}, nothing.fileno(), out.fileno(), errors.fileno())
        assert process.wait(20) and process.exit_status == 3
        process.end()
        assert (out.seek(0), out.read(), errors.seek(0), errors.read()) == (0, b"yes\n", 0, b"no")


def test_what_does_not_end_is_killed() -> None:
    with Path(os.devnull).open("r+b", buffering=0) as nothing:
        process = Process(["sleep", "60"], os.environ, *[nothing.fileno()] * 3)
        assert not process.wait(0.01)
        process.end()
    assert process.exit_status == -9


def test_what_is_not_there_is_an_error() -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        Process(["/nowhere/program"], {}, 0, 1, 2)
    assert caught.value.errno == errno.ENOENT


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: uses real-time scheduling")
def test_the_other_threads_run_while_a_child_waits_for_a_processor() -> None:
    """Six busy processes on one processor: a child of subprocess waits for its turn, with the interpreter lock held."""
    found = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, cwd=TREE)
    usual_s, spawned_s = map(float, found.stdout.split())
    assert spawned_s < max(0.003, usual_s / 3), found.stdout


def test_the_daemon_starts_processes_in_no_other_way() -> None:
    found = set()
    for package in ("bpf", "ctl", "sync"):
        for path in (TREE / package).rglob("*.py"):
            name = str(path.relative_to(TREE))
            if FORKS.search(path.read_text()) and not any(name.startswith(each) for each in ALLOWED):
                found.add(name)
    assert not found
