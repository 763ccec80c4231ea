"""What a change does to clients, reported before or with it."""

from __future__ import annotations

from ctl.config.changes import change
from ctl.config.model import Config
from ctl.explanation import impact


def config(scheduler: str = "maglev", backends: int = 4) -> Config:
    made = change(Config(), "vip.add", {"address": "10.0.0.1/24", "device": "eth0"})
    made = change(made, "farm.add", {"name": "web", "vip": "10.0.0.1", "port": 80, "scheduler": scheduler})
    for number in range(1, backends + 1):
        made = change(made, "backend.add", {"farm": "web", "address": f"10.1.0.{number}", "port": 80})
    return made


def resize(old: Config) -> list[impact.Resized]:
    return impact.resized(old, change(old, "farm.set", {"name": "web", "table_size": 1021}), frozenset())


def test_another_size_of_a_table_is_announced_with_the_clients_that_move() -> None:
    (found,) = resize(config())
    assert (found.farm, found.before, found.after) == ("web", 16381, 1021)
    assert 0.7 < found.moved < 0.8
    assert "from 16381 to 1021 slots: 75 % of its clients" in found.message


def test_only_a_table_in_use_is_announced() -> None:
    assert resize(config("roundrobin")) == []
    assert resize(config(backends=0)) == []
    old = config()
    assert impact.resized(old, change(old, "farm.set", {"name": "web", "idle_timeout_s": 60}), frozenset()) == []
