"""The frame that `top` shows for given answers of the daemon."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ctl.cli.rates import rates, sample
from ctl.cli.terminal.view import View
from ctl.cli.top import Screen

STATUS = {"node": "lb1", "role": "single", "epoch": 3, "interfaces": [{"name": "eth0", "xdp_mode": "native"}]}


def counters(**packets: int) -> list[dict[str, Any]]:
    return [{"name": name, "kind": name.split("_")[0], "packets": count} for name, count in packets.items()]


def farm(name: str, *packets: int) -> dict[str, Any]:
    """A farm; each backend has the given number of 100-byte packets and a tenth as many connections."""
    backends = [
        {
            "address": "10.0.0.1",
            "port": 81 + number,
            "weight": 1,
            "state": "up",
            "connections": 5,
            "last_error": "",
            **counts(each),
        }
        for number, each in enumerate(packets)
    ]
    settings = {"name": name, "vip": "10.0.0.100", "port": 80, "proto": "tcp", "enabled": True, "connections": 10}
    return settings | counts(sum(packets)) | {"backends": backends}


def counts(packets: int) -> dict[str, int]:
    return {"packets": packets, "bytes": packets * 100, "new_connections": packets // 10, "drops": 0}


def screen() -> Screen:
    """Two seconds in which "busy" had 4000 packets, three quarters of them on its second backend, and "idle" had 20."""
    before = sample(0.0, counters(drop_fenced=0, drop_no_backend=0), [farm("idle", 0), farm("busy", 0, 0)])
    farms, counted = [farm("idle", 20), farm("busy", 1000, 3000)], counters(drop_fenced=10, drop_no_backend=30, pass_not_ip=9)
    after = sample(2.0, counted, farms)
    return Screen(STATUS, {"counters": counted, "loop_lag_ms": 1.25}, farms, after, rates(before, after))


def test_header() -> None:
    assert screen().header() == [
        "lb1  single  epoch 3  eth0 native",
        "loop lag 1.2 ms",
        "2.01k packets/s  1.61 Mbit/s  201 new connections/s",
        "drops 20/s: drop_no_backend 15/s, drop_fenced 5/s",
    ]


def test_the_busiest_come_first() -> None:
    rows = screen().rows()
    assert [row[0] for row in rows] == ["busy", "  10.0.0.1:82", "  10.0.0.1:81", "idle", "  10.0.0.1:81"]
    assert rows[1] == ("  10.0.0.1:82", "weight 1", "up", "5", "150", "75.0 %", "1.5k", "1.2 Mbit/s", "")


def test_a_dead_backend_is_shown_with_its_error() -> None:
    shown = screen()
    for dead in shown.farms[1]["backends"]:
        dead |= {"state": "down", "last_error": "no answer from 10.0.0.1:82 within 1000 ms, words follow here"}
    errors = [row[-1] for row in shown.rows()]
    assert errors == ["", *["no answer from 10.0.0.1:82 within 1000 ms, word…"] * 2, "", ""]


@pytest.mark.parametrize("height", [7, 9, 12, 40])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_frame_never_exceeds_the_terminal(height: int, width: int) -> None:
    view = View()
    lines = screen().render(height, width, view)
    assert len(lines) <= height and all(len(plain(line)) <= width for line in lines)
    rows = [plain(line) for line in lines if re.search(r"10\.0\.0|^(idle|busy)", line)]
    hidden = re.search(r"(\d+) more below", lines[-1])
    assert len(rows) + int(hidden[1] if hidden else 0) == 5
    assert "FARM / BACKEND" in plain("".join(lines)) and "q quits" in lines[-1]


def test_scrolling_shows_every_row() -> None:
    view, seen = View(), set()
    for _ in range(6):
        lines = screen().render(8, 120, view)
        seen |= {line.split()[0] for line in map(plain, lines[4:-1])}
        view.pressed(b"\x1b[B")
    assert len(seen) == 4 and "2 more above" in lines[-1] and "below" not in lines[-1]
    view.pressed(b"\x1b[H")
    assert "more below" in screen().render(8, 120, view)[-1]


def test_a_filter_keeps_what_matches() -> None:
    view = View()
    view.pressed(b"/82")
    assert screen().render(20, 120, view)[-1].startswith("filter: 82")
    view.pressed(b"\r")
    assert [row[0] for row in screen().rows(view)] == ["busy", "  10.0.0.1:82"]
    assert screen().render(20, 120, view)[-1].startswith("filter 82: 2 lines; ")
    view.pressed(b"\x1b/IDLE\n")
    assert [row[0] for row in screen().rows(view)] == ["idle", "  10.0.0.1:81"]
    view.pressed(b"/\x15none\n")
    assert screen().rows(view) == []
    view.pressed(b"\x1b")
    assert len(screen().rows(view)) == 5


def plain(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line)
