"""The layouts of the maps that the fake plane has, as clang laid them out: from layouts.json in this directory.

`python -m tests.bpf.make_layouts` writes the file (as root: the compiler creates the maps to describe them), and
tests/bpf/test_plane_contract.py compares it with what the compiler reports now.
"""

from __future__ import annotations

import json
from pathlib import Path

from bpf.maps.layout import Layouts, from_json

FILE = Path(__file__).with_suffix(".json")
MAX_FLOWS = 4096  # of the build that the file describes
FEATURES = {"replication": True}
MAPS = (
    *("vips_v4", "vips_v6", "flows_v4", "flows_v6", "embryonic_v4", "embryonic_v6", "events_v4", "events_v6"),
    *("farm_traffic", "backend_traffic"),
)


def select(layouts: Layouts) -> Layouts:
    """The part of a build's layouts that the fake plane uses, without what differs between two machines."""
    return Layouts(layouts.abi, "", {name: layouts.maps[name] for name in MAPS})


def to_text(layouts: Layouts) -> str:
    """The file's content: one map per line, so that a difference is readable."""
    document = layouts.to_json()
    maps = document.pop("tables")  # its name in layout.json
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in maps.items())
    return json.dumps(document)[:-1] + f', "tables": {{\n{rows}\n}}}}\n'


LAYOUTS = from_json(json.loads(FILE.read_text()))
