"""`xlbctl backend`: the servers of a farm."""

from __future__ import annotations

import time
from typing import Any

import click

from ctl.cli.base import EXIT_INTERRUPTED, Session, XlbGroup, fail, pass_session
from ctl.cli.farm import show_impact
from ctl.cli.options import (
    SERVER,
    collect_fields,
    decorated,
    dry_run_option,
    endpoint_argument,
    farm_argument,
    number,
    setting_options,
)
from ctl.cli.output import plural, show
from ctl.config.model import DrainThen, format_endpoint
from ctl.config.settings import BACKEND_SETTINGS
from ctl.errors import Code, XlbError

MAX_DEADLINE_S = 30 * 24 * 3600
POLL_S = 0.5
SWEPT_AFTER_S = 6.0
"""Sweeps count the connections; this time after a cut they no longer count those that it ended."""
LOST_S = 120.0
"""A daemon that does not answer for longer is not waited for: a restart takes a minute on a slow machine."""


@click.group(cls=XlbGroup, examples=["xlbctl backend add web 10.77.0.11:8080", "xlbctl backend drain web 10.77.0.11:8080"])
def backend() -> None:
    """Backends: the servers to which a farm distributes its connections."""


@backend.command(
    "add",
    examples=[
        "xlbctl backend add web 10.77.0.11:8080",
        "xlbctl backend add web 10.77.0.12:8080 --weight 3",
        "xlbctl backend add web [2001:db8::13]:8080 --priority 1",
        "xlbctl backend add web 10.77.0.13",
    ],
)
@farm_argument
@click.argument("endpoint", type=SERVER, metavar="ADDR[:PORT]")
@decorated(setting_options(BACKEND_SETTINGS, adding=True))
@dry_run_option
@pass_session
def add(session: Session, /, farm: str, endpoint: tuple[str, int | None], dry_run: bool, **options: Any) -> None:
    """Add a server to a farm."""
    _change(session, "add", farm, endpoint, "added", dry_run, **collect_fields(options, BACKEND_SETTINGS))


@backend.command(
    "set", examples=["xlbctl backend set web 10.77.0.12:8080 --weight 5", "xlbctl backend set web 10.77.0.12:8080 --priority 1"]
)
@farm_argument
@endpoint_argument
@decorated(setting_options(BACKEND_SETTINGS, adding=False))
@click.option("--drain/--no-drain", "draining", default=None, help="Stop or resume new connections to this server.")
@dry_run_option
@click.pass_context
def set_(ctx: click.Context, /, farm: str, endpoint: tuple[str, int | None], dry_run: bool, **options: Any) -> None:
    """Change the given settings and keep the others; existing connections keep their backend."""
    fields = collect_fields(options, BACKEND_SETTINGS)
    if not fields:
        raise click.UsageError("nothing to change: give --weight, --priority, --drain or another option", ctx)
    session = ctx.find_object(Session)
    assert session is not None
    _change(session, "set", farm, endpoint, "changed", dry_run, **fields)


@backend.command(
    "drain",
    examples=[
        "xlbctl backend drain web 10.77.0.11:8080",
        "xlbctl backend drain web 10.77.0.11:8080 --deadline 300 --then cut --wait",
    ],
)
@farm_argument
@endpoint_argument
@click.option("--deadline", type=number(1, MAX_DEADLINE_S), metavar="SECONDS", help="When the drain ends, from now on.")
@click.option(
    "--then",
    "drain_then",
    type=click.Choice([each.value for each in DrainThen]),
    help="What happens at the deadline to the connections that are left: nothing (keep), or they end (cut).  [default: keep]",
)
@click.option("--wait", is_flag=True, help="Wait until no connection is left, or the deadline; Ctrl-C leaves the drain.")
@dry_run_option
@pass_session
def drain(
    session: Session,
    farm: str,
    endpoint: tuple[str, int | None],
    deadline: int | None,
    drain_then: str | None,
    wait: bool,
    dry_run: bool,
) -> None:
    """Send a server no new connections and let its connections finish; 'backend set … --no-drain' ends the drain."""
    if drain_then and deadline is None:
        raise click.UsageError("--then needs --deadline")
    fields = {"deadline": deadline, "drain_then": drain_then}
    given = {name: value for name, value in fields.items() if value is not None}
    if dry_run or not wait:
        _change(session, "drain", farm, endpoint, "draining", dry_run, **given)
        return
    session.call("backend.drain", farm=farm, address=endpoint[0], port=endpoint[1], **given)
    try:
        end = _wait(session, farm, endpoint)
    except KeyboardInterrupt:
        name = format_endpoint(endpoint[0], endpoint[1]) if endpoint[1] else endpoint[0]
        fail(f"interrupted: the drain stays in place; xlbctl backend set {farm} {name} --no-drain ends it", EXIT_INTERRUPTED)
    show(session.json, end, lambda end: click.echo(_drained(farm, end)))


def _wait(session: Session, farm: str, endpoint: tuple[str, int | None]) -> dict[str, Any]:
    """Wait for the end of a drain and print the progress to stderr; returns the backend as it is then.

    The drain is part of the configuration, so that it continues while the daemon restarts and on the peer.
    """
    shown: int | None = -1
    lost_s = 0.0  # since when the daemon does not answer
    while True:
        left: int | None = None
        try:
            found, lost_s = _drain(session, farm, endpoint), 0.0
        except XlbError as error:
            if error.code not in (Code.DAEMON_NOT_RUNNING, Code.DAEMON_SILENT):
                raise
            lost_s = lost_s or time.monotonic()
            if time.monotonic() - lost_s >= LOST_S:
                raise XlbError(f"{error}; the drain stays in place and ends at its deadline, if any", error.code) from None
            session.close()
            line = "xlbd does not answer; the drain stays in place; waiting for xlbd"
        else:
            left, until = found["connections"], found["drain_until"]
            over = bool(until) and time.time() >= until + (SWEPT_AFTER_S if found["drain_then"] == "cut" else 0)
            if not left or over:
                return {name: found[name] for name in ("farm", "address", "port", "connections")} | {"at_deadline": over}
            end = f", {max(0, round(until - time.time()))} s until the deadline" if until else ""
            line = f"{format_endpoint(found['address'], found['port'])} of {farm}: {plural(left, 'connection')} left{end}"
        if left != shown:
            click.echo(line, err=True)
            shown = left
        time.sleep(POLL_S)


def _drain(session: Session, farm: str, endpoint: tuple[str, int | None]) -> dict[str, Any]:
    """A backend that drains, as in `farm.show`. Raises XlbError if it does not any more."""
    address, port = endpoint
    try:
        backends = session.call("farm.show", name=farm)["backends"]
        found = next((each for each in backends if each["address"] == address and port in (None, each["port"])), None)
        if found is None or not found["draining"]:
            raise XlbError(f"the drain of {address} was ended by another command", Code.CHANGE_OVERTAKEN)
        if not found["connections"]:  # as the last sweep has counted them, which may have been before the drain began
            name = format_endpoint(address, found["port"])
            found["connections"] = session.call("conn.count", farm=farm, backend=name, current=True)["total"]
    except XlbError as error:
        if error.code in (Code.UNKNOWN_FARM, Code.UNKNOWN_BACKEND):
            raise XlbError(f"the drain of {address} was ended by another command: {error}", Code.CHANGE_OVERTAKEN) from None
        raise
    return {"farm": farm, **found}


def _drained(farm: str, end: dict[str, Any]) -> str:
    count = end["connections"]
    left = f"at the deadline with {plural(count, 'connection')} left" if count else "no connection left"
    return f"backend {format_endpoint(end['address'], end['port'])} of {farm} drained: {left}"


@backend.command(
    "remove", examples=["xlbctl backend remove web 10.77.0.11:8080", "xlbctl backend remove web 10.77.0.11:8080 --now"]
)
@farm_argument
@endpoint_argument
@click.option("--now", is_flag=True, help="End its connections, also where the farm keeps them (--on-backend-removed keep).")
@dry_run_option
@pass_session
def remove(session: Session, farm: str, endpoint: tuple[str, int | None], now: bool, dry_run: bool) -> None:
    """Remove a server from a farm; its connections end unless the farm keeps them. Drain it first to let them finish."""
    _change(session, "remove", farm, endpoint, "removed", dry_run, **({"now": True} if now else {}))


def _change(
    session: Session, verb: str, farm: str, endpoint: tuple[str, int | None], done: str, dry_run: bool = False, **fields: Any
) -> None:
    address, port = endpoint
    if dry_run:
        show_impact(session, f"backend.{verb}", farm=farm, address=address, port=port, **fields)
        return
    result = session.call(f"backend.{verb}", farm=farm, address=address, port=port, **fields)
    show(
        session.json,
        result,
        lambda _: click.echo(f"backend {format_endpoint(address, port) if port else address} of {farm} {done}"),
    )
