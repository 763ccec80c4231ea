"""`xlbctl farm`: the services."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import click

from ctl.cli.base import Session, XlbGroup, pass_session
from ctl.cli.options import collect_farm_fields, complete_farm, dry_run_option, farm_options, listener
from ctl.cli.output import byte_count, count, duration, print_fields, print_impact, print_table, share, show
from ctl.cli.terminal.tables import Column
from ctl.config.model import format_endpoint
from ctl.config.settings import FARM_SETTINGS

FARM_COLUMNS = (
    Column("NAME"),
    Column("VIP"),
    Column("PROTO", priority=2),
    Column("MODE", priority=4),
    Column("SCHEDULER", priority=5),
    Column("STATE", state=True),
    Column("UP", right=True, priority=1),
    Column("CONNECTIONS", right=True, priority=3),
)
BACKEND_COLUMNS = (
    Column("BACKEND"),
    Column("WEIGHT", right=True, priority=3),
    Column("PRIORITY", right=True, priority=7),
    Column("STATE", state=True),
    Column("CONNECTIONS", right=True, priority=3),
    Column("OPENED", right=True, priority=6),
    Column("SHARE", right=True, priority=5),
    Column("PACKETS", right=True, priority=8),
    Column("BYTES", right=True, priority=9),
    Column("SINCE", priority=4),
    Column("LAST ERROR", priority=2, text=True),
)


SHOWN_ALWAYS = ("scheduler", "enabled", "all_down", "on_no_backend", "idle_timeout_s", "opening_timeout_s", "closing_timeout_s")
DEFAULTS = {each.name: each.default for each in FARM_SETTINGS}


@click.group(
    cls=XlbGroup,
    examples=["xlbctl farm add web --vip 10.77.0.100 --port 80", "xlbctl farm show web", "xlbctl farm set web --check http"],
)
def farm() -> None:
    """Farms: services on a virtual address, balanced over backends."""


@farm.command(
    "add",
    examples=[
        "xlbctl farm add web --vip 10.77.0.100 --port 80",
        "xlbctl farm add web --vip 10.77.0.100 --port 80 --check http --check-path /health --check-status 200",
        "xlbctl farm add mail --vip 10.77.0.100,2001:db8::100 --port 25,465,587",
        "xlbctl farm add dns --vip 2001:db8::100 --port 53 --proto udp --mode dnat --scheduler source",
    ],
)
@click.argument("name")
@farm_options(adding=True)
@pass_session
def add(session: Session, /, name: str, **options: Any) -> None:
    """Create a farm; add backends to it with 'xlbctl backend add'."""
    result = session.call("farm.add", name=name, **collect_farm_fields(options))
    show(session.json, result, lambda farm: click.echo(f"farm {name} added: {summary(farm)}"))


@farm.command("list", examples=["xlbctl farm list", "xlbctl farm list -o json"])
@pass_session
def list_(session: Session) -> None:
    """List the farms."""
    show(session.json, session.call("farm.list"), _print_farms)


@farm.command("show", examples=["xlbctl farm show web", "xlbctl farm show web -o json"])
@click.argument("name", shell_complete=complete_farm)
@pass_session
def show_(session: Session, name: str) -> None:
    """Show a farm's settings, and its backends with state, load and last health error."""
    show(session.json, session.call("farm.show", name=name), print_farm)


@farm.command(
    "set",
    examples=[
        "xlbctl farm set web --scheduler roundrobin",
        "xlbctl farm set web --check http --check-path /health --check-interval-ms 1000",
        "xlbctl farm set web --check none",
    ],
)
@click.argument("name", shell_complete=complete_farm)
@farm_options(adding=False)
@dry_run_option
@click.pass_context
def set_(ctx: click.Context, /, name: str, dry_run: bool, **options: Any) -> None:
    """Change the given settings and keep the others; existing connections keep their backend."""
    fields = collect_farm_fields(options)
    if not fields:
        raise click.UsageError("nothing to change: give at least one option", ctx)
    session = ctx.find_object(Session)
    assert session is not None
    if dry_run:
        show_impact(session, "farm.set", name=name, **fields)
        return
    result = session.call("farm.set", name=name, **fields)
    show(session.json, result, lambda farm: click.echo(f"farm {name} changed: {summary(farm)}"))


def _verb(verb: str, done: str, text: str) -> Callable[..., None]:
    """Make a command whose only argument is a farm."""

    @farm.command(verb, help=text, examples=[f"xlbctl farm {verb} web"])
    @click.argument("name", shell_complete=complete_farm)
    @dry_run_option
    @pass_session
    def command(session: Session, name: str, dry_run: bool) -> None:
        if dry_run:
            show_impact(session, f"farm.{verb}", name=name)
            return
        result = session.call(f"farm.{verb}", name=name)
        show(session.json, result, lambda _: click.echo(f"farm {name} {done}"))

    return command


delete = _verb("delete", "deleted", "Delete a farm and its backends; its connections end.")
start = _verb("start", "started", "Accept new connections again after a stop.")
stop = _verb("stop", "stopped", "Accept no new connections; existing connections continue and the settings remain.")


def show_impact(session: Session, change: str, **arguments: Any) -> None:
    """Ask for the impact of a change and print it."""
    given = {name: value for name, value in arguments.items() if value is not None}
    show(session.json, session.call("config.impact", change=change, arguments=given), print_impact)


def summary(farm: dict[str, Any]) -> str:
    """Return listener, protocol, mode and scheduler of a farm."""
    return f"{listener(farm)} {farm['proto']}, {farm['mode']}, {farm['scheduler']}"


def farm_state(farm: dict[str, Any]) -> str:
    """Return "stopped", "up" if any backend is up, or "down"."""
    if not farm["enabled"]:
        return "stopped"
    return "up" if any(backend["state"] == "up" for backend in farm["backends"]) else "down"


def _print_farms(farms: list[dict[str, Any]]) -> None:
    rows = [
        (
            farm["name"],
            listener(farm),
            farm["proto"],
            farm["mode"],
            farm["scheduler"],
            farm_state(farm),
            f"{sum(backend['state'] == 'up' for backend in farm['backends'])}/{len(farm['backends'])}",
            count(farm["connections"]),
        )
        for farm in farms
    ]
    print_table(FARM_COLUMNS, rows, "No farms yet: create one with 'xlbctl farm add NAME --vip ADDR --port PORT'.")


def print_farm(farm: dict[str, Any]) -> None:
    """Print a farm: its settings, then its backends."""
    seen = (farm["snat_address"] or farm["vip"]).replace(",", ", ")
    fields = [
        ("farm", farm["name"]),
        ("state", farm_state(farm)),
        ("listens on", f"{listener(farm)} {farm['proto']}"),
        ("mode", farm["mode"] + (f", backends see {seen}" if farm["mode"] == "snat" else "")),
        ("scheduler", farm["scheduler"]),
        ("health check", check_sentence(farm["health"])),
        ("all down", {"drop": "drop new connections", "all": "try every backend"}.get(farm["all_down"], farm["all_down"])),
        ("no backend", "refuse new connections" if farm.get("on_no_backend") != "drop" else "drop them silently"),
        ("idle timeout", idle_timeouts(farm)),
        *_more_settings(farm),
    ]
    print_fields(fields)
    click.echo()
    total = sum(backend["new_connections"] for backend in farm["backends"])
    rows = [backend_row(backend, total) for backend in farm["backends"]]
    print_table(BACKEND_COLUMNS, rows, f"No backends yet: add one with 'xlbctl backend add {farm['name']} ADDR:PORT'.")


def _more_settings(farm: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings with a line of their own only where they differ from the default."""
    given = [(each.name, farm.get(each.name, each.default)) for each in FARM_SETTINGS if each.name not in SHOWN_ALWAYS]
    return [(name.replace("_", " "), str(value)) for name, value in given if value != DEFAULTS[name]]


def idle_timeouts(farm: dict[str, Any]) -> str:
    """The timeouts that the farm's protocol has. An earlier daemon reports the first only."""
    idle, opening, closing = (farm.get(f"{name}_timeout_s") for name in ("idle", "opening", "closing"))
    more = [f"opening {opening} s"] if opening else []
    more += [f"closing {closing} s"] if closing and farm["proto"] == "tcp" else []
    return ", ".join([f"{idle} s", *more])


def backend_row(backend: dict[str, Any], farm_total: int) -> tuple[str, ...]:
    """Return a backend's row; `farm_total`: new connections of the farm, for the share."""
    new, since = backend["new_connections"], backend["state_for_s"]
    return (
        format_endpoint(backend["address"], backend["port"]),
        str(backend["weight"]),
        str(backend["priority"]),
        backend["state"],
        count(backend["connections"]),
        count(new),
        share(new, farm_total),
        count(backend["packets"]),
        byte_count(backend["bytes"]),
        "" if since is None else f"{duration(since)} ago",
        error_sentence(backend),
    )


def error_sentence(backend: dict[str, Any]) -> str:
    """Return the error of the last failed health check and its age."""
    if not backend["last_error"]:
        return ""
    when = backend["last_error_s"]
    return f"{backend['last_error']}" + ("" if when is None else f" ({duration(when)} ago)")


def check_sentence(check: dict[str, Any]) -> str:
    """Return the health check of a farm in one line."""
    if check["kind"] == "none":
        return "none"
    port = f" on port {check['port']}" if check["port"] else ""
    address = f" at {check['address']}" if check.get("address") else ""
    timing = f"every {check['interval_ms']} ms"
    if check.get("interval_down_ms"):
        timing += f" ({check['interval_down_ms']} ms while down)"
    timing += f", timeout {check['timeout_ms']} ms"
    counts = f"up after {check['rise']} successes in a row, down after {check['fall']} failures"
    return f"{_what_is_checked(check)}{port}{address}, {timing}, {counts}"


def _what_is_checked(check: dict[str, Any]) -> str:
    kind = check["kind"]
    if kind in ("http", "https"):
        verified = " with a valid certificate" if check.get("verify") else ""
        text = f' with "{check["text"]}"' if check.get("text") else ""
        return f"{kind} GET {check['path']} answers {check['status']}{text}{verified}"
    if kind == "dns":
        answer = f" {check['answer']}" if check["answer"] else ""
        return f"dns {check['query']} {check['query_type']} answers {check['rcode']}{answer}"
    if kind == "udp":
        return f'udp answers "{check["answer"]}"' if check["answer"] else "udp port is not unreachable"
    if kind == "grpc":
        return f"grpc health of {check['service'] or 'the server'} is SERVING"
    if kind == "command":
        return f"command {shlex.join(check['command'])} exits with 0"
    return "icmp echo is answered" if kind == "icmp" else "tcp connect"
