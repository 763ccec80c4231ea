"""The frame that `top` shows for given answers of the daemon."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from ctl.cli.rates import rates, sample
from ctl.cli.top import Screen

STATUS = {"node": "lb1", "role": "single", "epoch": 3, "interfaces": [{"name": "eth0", "xdp_mode": "native"}]}


def counters(**packets: int) -> list[dict[str, Any]]:
    return [{"name": name, "kind": name.split("_")[0], "packets": count} for name, count in packets.items()]


def farm(name: str, *packets: int) -> dict[str, Any]:
    """A farm; each backend has the given number of 100-byte packets and a tenth as many connections."""
    backends = [
        {"address": "10.0.0.1", "port": 81 + number, "weight": 1, "state": "up", "connections": 5, **counts(each)}
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
    assert rows[1] == ("  10.0.0.1:82", "weight 1", "up", "5", "150", "75.0 %", "1.5k", "1.2 Mbit/s")


def test_a_frame_never_is_taller_than_the_terminal() -> None:
    for height in (6, 9, 12, 40):
        console = Console(width=120, height=height, record=True, color_system=None)
        with console.capture() as captured:
            console.print(screen().render(height))
        lines = captured.get().splitlines()
        assert len(lines) <= max(height, 10)
        shown = sum("10.0.0." in line or "idle" in line for line in lines)
        hidden = int(lines[-1].split()[0]) if "more" in lines[-1] else 0
        assert shown + hidden == 5
