"""Which farms have no backend that is up, and when that is news."""

from __future__ import annotations

from ctl.config.model import Backend, Config, Farm
from ctl.health.availability import Availability


def farm_of(name: str, *ids: int) -> Farm:
    return Farm(
        id=1,
        name=name,
        vip="192.0.2.1",
        port=80,
        port_last=80,
        backends=tuple(Backend(each, f"10.0.0.{each}", 80) for each in ids),
    )


def config_of(*farms: Farm) -> Config:
    return Config(farms={farm.name: farm for farm in farms})


def test_a_farm_goes_down_with_its_last_backend_and_comes_up_with_the_first() -> None:
    config, availability = config_of(farm_of("web", 1, 2), farm_of("db", 3)), Availability()
    assert list(availability.judge(config, {1}, "web")) == []
    assert list(availability.judge(config, {1, 2}, "web")) == [("web", False)]
    assert list(availability.judge(config, {1, 2}, "web")) == [], "said once"
    assert list(availability.judge(config, {1, 2, 3}, "db")) == [("db", False)]
    assert list(availability.judge(config, {1, 3}, "web")) == [("web", True)]
    assert availability.down == {"db"}


def test_a_farm_that_is_gone_is_forgotten_without_a_word() -> None:
    availability = Availability()
    assert list(availability.judge(config_of(farm_of("web", 1)), {1}, "web")) == [("web", False)]
    assert list(availability.judge(config_of(), set())) == [] and availability.down == set()


def test_a_change_that_brings_a_usable_backend_ends_it() -> None:
    availability = Availability()
    assert list(availability.judge(config_of(farm_of("web", 1)), {1}, "web")) == [("web", False)]
    assert list(availability.judge(config_of(farm_of("web", 1, 2)), {1})) == [("web", True)]
