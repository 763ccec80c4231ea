"""pyroute2 is imported in parts, in whichever thread needs it first."""

from __future__ import annotations

import subprocess
import sys

from tests.tree import TREE

THREADS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from ctl.network.kernel import lean_pyroute2
sys.setswitchinterval(1e-6)
start = threading.Barrier(8)
def load(_):
    start.wait()
    return lean_pyroute2.classes()
with ThreadPoolExecutor(8) as pool:
    found = set(pool.map(load, range(8)))
assert len(found) == 1, found
assert found.pop().IPRoute.__name__ == "IPRoute"
assert "pyroute2" not in sys.modules, "the whole package was imported"
"""


def test_threads_that_load_it_at_the_same_time_get_the_same_classes() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], cwd=TREE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
