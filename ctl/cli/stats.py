"""`xlbctl stats`: verdicts on packets with their reasons; traffic of farms; Prometheus format."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import click

from ctl.cli.base import Session, XlbCommand
from ctl.cli.output import bit_rate, byte_count, count, print_json, print_table
from ctl.cli.rates import Sample, rates, sample
from ctl.cli.terminal.interrupt import interruptible
from ctl.cli.terminal.tables import Column
from ctl.config.model import format_endpoint

COUNTER_COLUMNS = (
    Column("COUNTER"),
    Column("KIND", state=True, priority=1),
    Column("PACKETS", right=True),
    Column("WHY", text=True),
)
FARM_COLUMNS = (
    Column("FARM"),
    Column("NEW CONNECTIONS", right=True),
    Column("PACKETS", right=True),
    Column("BYTES", right=True),
    Column("DROPS", right=True),
)
PROMETHEUS_LOADS = (
    ("packets", "Packets in both directions."),
    ("bytes", "Bytes in both directions."),
    ("new_connections", "Connections opened."),
    ("drops", "Packets dropped."),
)


@click.command(
    "stats",
    cls=XlbCommand,
    examples=["xlbctl stats", "xlbctl stats --all", "xlbctl stats --watch", "xlbctl stats --prometheus"],
)
@click.option("--all", "everything", is_flag=True, help="Include counters and farms that are zero.")
@click.option("--watch", is_flag=True, help="Repeat, showing rates per second, until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=2.0, metavar="SECONDS", help="Time between repeats.")
@click.option("--prometheus", is_flag=True, help="Write Prometheus' text format, for node_exporter's textfile collector.")
@click.pass_context
def stats(ctx: click.Context, everything: bool, watch: bool, interval: float, prometheus: bool) -> None:
    """Show the verdicts on packets with their reasons, and each farm's traffic."""
    session = ctx.find_object(Session)
    assert session is not None
    if sum((session.json, watch, prometheus)) > 1:
        raise click.UsageError("--watch, --prometheus and -o json exclude each other", ctx)
    if watch:
        _watch(session, everything, interval)
        return
    answer, farms, counts = take_sample(session)
    if prometheus:
        click.echo("\n".join(prometheus_lines(answer, farms, counts)))
    elif session.json:
        print_json(answer | {"farms": {name: asdict(load) for name, load in counts.farms.items()}})
    else:
        _print_tables(answer["counters"], counts, everything, as_rates=False)


def take_sample(session: Session) -> tuple[dict[str, Any], list[dict[str, Any]], Sample]:
    """Query counters and farms; returns both answers and their counts."""
    answer, farms = session.call("stats"), session.call("farm.list")
    return answer, farms, sample(time.monotonic(), answer["counters"], farms)


def _watch(session: Session, everything: bool, interval: float) -> None:
    with interruptible() as wait:
        _, _, before = take_sample(session)
        while wait(interval) is None:
            answer, _, after = take_sample(session)
            if sys.stdout.isatty():
                click.clear()
            click.echo(f"per second, over {after.at_s - before.at_s:.1f} s")
            _print_tables(answer["counters"], rates(before, after), everything, as_rates=True)
            before = after


def _print_tables(counters: list[dict[str, Any]], counts: Sample, everything: bool, as_rates: bool) -> None:
    rows = [
        (counter["name"], counter["kind"], count(counts.counters[counter["name"]]), counter["reason"])
        for counter in counters
        if everything or counts.counters[counter["name"]]
    ]
    print_table(COUNTER_COLUMNS, rows, "No packets counted yet.")
    click.echo()
    size: Callable[[float], str] = bit_rate if as_rates else byte_count
    farm_rows = [
        (name, count(load.new_connections), count(load.packets), size(load.bytes), count(load.drops))
        for name, load in counts.farms.items()
        if everything or load.packets or load.drops
    ]
    print_table(FARM_COLUMNS, farm_rows, "No farm has had traffic yet.")


def prometheus_lines(answer: dict[str, Any], farms: list[dict[str, Any]], counts: Sample) -> Iterator[str]:
    """Return the counts in Prometheus' text exposition format 0.0.4."""
    yield from _family("xlb_packets_total", "counter", "Packets by verdict.")
    for counter in answer["counters"]:
        yield _line("xlb_packets_total", {"verdict": counter["name"], "kind": counter["kind"]}, counter["packets"])
    for name, text in PROMETHEUS_LOADS:
        metric = f"xlb_farm_{name}_total"
        yield from _family(metric, "counter", f"{text[:-1]} of a farm.")
        for farm, load in counts.farms.items():
            yield _line(metric, {"farm": farm}, getattr(load, name))
    for name, text in PROMETHEUS_LOADS[:3]:
        metric = f"xlb_backend_{name}_total"
        yield from _family(metric, "counter", f"{text[:-1]} of a backend.")
        for (farm, backend), load in counts.backends.items():
            yield _line(metric, {"farm": farm, "backend": backend}, getattr(load, name))
    yield from _backend_gauges(farms)


def _backend_gauges(farms: list[dict[str, Any]]) -> Iterator[str]:
    backends = [
        ({"farm": farm["name"], "backend": format_endpoint(backend["address"], backend["port"])}, backend)
        for farm in farms
        for backend in farm["backends"]
    ]
    yield from _family("xlb_backend_up", "gauge", "1 unless the backend is down.")
    for labels, backend in backends:
        yield _line("xlb_backend_up", labels, int(backend["state"] != "down"))
    yield from _family("xlb_backend_connections", "gauge", "Connections open now.")
    for labels, backend in backends:
        yield _line("xlb_backend_connections", labels, backend["connections"])


def _family(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _line(name: str, labels: dict[str, str], value: float) -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

    return f"{name}{{{','.join(f'{label}={quoted(text)}' for label, text in labels.items())}}} {value}"
