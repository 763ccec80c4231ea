"""Small BPF programs of the benches, compiled with bcc without headers of the running kernel."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bpf.loading.headers import compiler_flags, make_header_tree


def import_bcc() -> Any:
    """The module of Debian's python3-bpfcc; a virtual environment does not see it by itself."""
    if "/usr/lib/python3/dist-packages" not in sys.path:
        sys.path.append("/usr/lib/python3/dist-packages")
    import bcc

    return bcc


@contextmanager
def compiled(text: str, flags: Sequence[str]) -> Iterator[Any]:
    """A bcc.BPF of the C source `text`; its programs and maps end with the context."""
    with tempfile.TemporaryDirectory(prefix="xlb-bench-") as tree:
        make_header_tree(Path(tree))
        os.environ["BCC_KERNEL_SOURCE"] = tree
        module = import_bcc().BPF(text=text.encode(), cflags=[*compiler_flags(), *flags])
        yield module
        module.cleanup()
