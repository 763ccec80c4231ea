"""`xlbctl backend`: the servers of a farm."""

from __future__ import annotations

from typing import Any

import click

from ctl.cli.base import Session, XlbGroup, pass_session
from ctl.cli.options import SERVER, collect_fields, decorated, endpoint_argument, farm_argument, setting_options
from ctl.cli.output import show
from ctl.config.model import format_endpoint
from ctl.config.settings import BACKEND_SETTINGS


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
@pass_session
def add(session: Session, /, farm: str, endpoint: tuple[str, int | None], **options: Any) -> None:
    """Add a server to a farm."""
    _change(session, "add", farm, endpoint, "added", **collect_fields(options, BACKEND_SETTINGS))


@backend.command(
    "set", examples=["xlbctl backend set web 10.77.0.12:8080 --weight 5", "xlbctl backend set web 10.77.0.12:8080 --priority 1"]
)
@farm_argument
@endpoint_argument
@decorated(setting_options(BACKEND_SETTINGS, adding=False))
@click.option("--drain/--no-drain", "draining", default=None, help="Stop or resume new connections to this server.")
@click.pass_context
def set_(ctx: click.Context, /, farm: str, endpoint: tuple[str, int | None], **options: Any) -> None:
    """Change the given settings and keep the others; existing connections keep their backend."""
    fields = collect_fields(options, BACKEND_SETTINGS)
    if not fields:
        raise click.UsageError("nothing to change: give --weight, --priority, --drain or another option", ctx)
    session = ctx.find_object(Session)
    assert session is not None
    _change(session, "set", farm, endpoint, "changed", **fields)


@backend.command("drain", examples=["xlbctl backend drain web 10.77.0.11:8080"])
@farm_argument
@endpoint_argument
@pass_session
def drain(session: Session, farm: str, endpoint: tuple[str, int | None]) -> None:
    """Send a server no new connections and let its connections finish; 'backend set … --no-drain' ends the drain."""
    _change(session, "drain", farm, endpoint, "draining")


@backend.command("remove", examples=["xlbctl backend remove web 10.77.0.11:8080"])
@farm_argument
@endpoint_argument
@pass_session
def remove(session: Session, farm: str, endpoint: tuple[str, int | None]) -> None:
    """Remove a server from a farm; its connections end. Drain it first to let them finish."""
    _change(session, "remove", farm, endpoint, "removed")


def _change(session: Session, verb: str, farm: str, endpoint: tuple[str, int | None], done: str, **fields: Any) -> None:
    address, port = endpoint
    result = session.call(f"backend.{verb}", farm=farm, address=address, port=port, **fields)
    show(
        session.json,
        result,
        lambda _: click.echo(f"backend {format_endpoint(address, port) if port else address} of {farm} {done}"),
    )
