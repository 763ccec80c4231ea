"""Which process is the xlbd of a node file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctl.api.running import config_of, listening

DEFAULT = Path("/etc/xlb/node.toml")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/usr/bin/python3", "/usr/bin/xlbd", "--config", "/a.toml"], Path("/a.toml")),
        (["python3", "-m", "ctl.daemon", "--config=b.toml", "--detach"], Path("b.toml")),
        (["/usr/bin/xlbd"], DEFAULT),
        (["/usr/bin/other", "--config", "/a.toml"], None),
        ([], None),
    ],
)
def test_the_command_line_names_the_node_file(words: list[str], expected: Path | None) -> None:
    assert config_of(words, DEFAULT) == expected


def test_only_listening_control_sockets_count() -> None:
    table = """Num       RefCount Protocol Flags    Type St Inode Path
0: 00000002 00000000 00010000 0001 01 1 /run/xlb/control.sock
0: 00000003 00000000 00000000 0001 03 2 /run/xlb/control.sock
0: 00000002 00000000 00010000 0001 01 3 /run/a directory/control.sock
0: 00000002 00000000 00010000 0001 01 4 /run/other.sock
0: 00000002 00000000 00010000 0001 01 5 @abstract
0: 00000003 00000000 00000000 0002 01 6
"""
    assert listening(table) == [Path("/run/xlb/control.sock"), Path("/run/a directory/control.sock")]
