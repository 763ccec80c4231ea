"""pyroute2 is imported in parts, in whichever thread needs it first."""

from __future__ import annotations

import subprocess
import sys

from tests.tree import TREE

THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from ctl.network.kernel import lean_pyroute2
sys.setswitchinterval(1e-6)
with ThreadPoolExecutor(2) as pool:
    first = pool.submit(lean_pyroute2.iproute)
    while "pyroute2" not in sys.modules and not first.done():
        pass  # until the first thread is in the middle of it
    assert pool.submit(lean_pyroute2.iproute).result() == first.result()
"""


def test_a_second_thread_waits_until_the_first_has_loaded_it() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], cwd=TREE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
