"""The compile child: `python -m bpf.compile JSON` compiles, loads and pins the data plane, then exits.

A process of its own because LLVM costs 100 MB and a compiler error must not reach a running node. The only file that
imports bcc. What it prints on stdout is one JSON document: the layouts clang chose.
"""

from __future__ import annotations

import enum
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from bpf import constants
from bpf.flatten import flatten
from bpf.headers import compiler_flags, make_header_tree

SOURCE = Path(__file__).parent / "xlb.c"
PROGRAM = "xlb"


def c_constants() -> list[str]:
    """`-D` flags for every number and enum member of `bpf.constants`, e.g. -DMODE_SNAT=0, -DCOUNTER_PASS_NOT_IP=0."""
    flags = [f"-D{name}={value}" for name, value in vars(constants).items() if name.isupper() and isinstance(value, int)]
    for kind in vars(constants).values():
        if isinstance(kind, type) and issubclass(kind, enum.IntEnum | enum.IntFlag):
            prefix = "".join("_" + c if c.isupper() else c for c in kind.__name__).lstrip("_").upper()
            flags += [f"-D{prefix}_{member.name}={int(member)}" for member in kind]
    flags += [f"-DCOUNTER_{counter.name.upper()}={number}" for number, counter in enumerate(constants.COUNTERS)]
    flags.append(f"-DCOUNTER_COUNT={len(constants.COUNTERS)}")
    return flags


def main(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="xlb-headers-") as tree:
        make_header_tree(Path(tree))
        os.environ["BCC_KERNEL_SOURCE"] = tree
        if "/usr/lib/python3/dist-packages" not in sys.path:
            sys.path.append("/usr/lib/python3/dist-packages")
        from bcc import BPF

        flags = [f'-DPINS="{request["pins"]}"', f"-DMAX_FLOWS={request['max_flows']}", f"-DMAX_EMBRYONIC={request['max_embryonic']}"]
        module = BPF(text=flatten(SOURCE), cflags=[*compiler_flags(), *c_constants(), *flags])
        function = module.load_func(PROGRAM, BPF.XDP)
        return {"fd": function.fd, "tables": [name.decode() for name in (k if isinstance(k, bytes) else k.encode() for k in module.tables)]}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
