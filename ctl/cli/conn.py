"""`xlbctl conn`: the connections in the kernel's flow maps."""

from __future__ import annotations

import sys
from typing import Any

import click

from ctl.cli.base import Session, XlbGroup, pass_session
from ctl.cli.options import CONNECTION, ENDPOINT, complete_backend, complete_farm, number, yes_option
from ctl.cli.output import print_fields, print_item, print_table, show
from ctl.cli.terminal.tables import Column
from ctl.config.model import Protocol, format_endpoint

DEFAULT_LIMIT = 1000
MAX_LIMIT = 20_000

CONNECTION_COLUMNS = (
    Column("PROTO", priority=2),
    Column("CLIENT"),
    Column("VIP", priority=4),
    Column("BACKEND"),
    Column("FARM", priority=3),
    Column("STATE", priority=1),
    Column("IDLE", right=True, priority=5),
)


@click.group(cls=XlbGroup, examples=["xlbctl conn count", 'xlbctl conn show "192.0.2.7:40000 -> 10.77.0.100:80"'])
def conn() -> None:
    """Connections: which client is connected to which backend, and why."""


def _farm_option(command: Any) -> Any:
    return click.option("--farm", shell_complete=complete_farm, metavar="FARM", help="Only connections of this farm.")(command)


@conn.command("list", examples=["xlbctl conn list", "xlbctl conn list --farm web --limit 20"])
@_farm_option
@click.option("--limit", type=number(1, MAX_LIMIT), default=DEFAULT_LIMIT, metavar="N", help="Show at most N connections.")
@pass_session
def list_(session: Session, farm: str | None, limit: int) -> None:
    """List the connections that are in the flow maps now."""
    show(session.json, session.call("conn.list", farm=farm, limit=limit), _print_connections)


@conn.command("count", examples=["xlbctl conn count", "xlbctl conn count --farm web -o json"])
@_farm_option
@pass_session
def count_(session: Session, farm: str | None) -> None:
    """Count connections."""
    show(session.json, session.call("conn.count", farm=farm), _print_count)


@conn.command(
    "show",
    examples=[
        'xlbctl conn show "192.0.2.7:40000 -> 10.77.0.100:80"',
        'xlbctl conn show --proto udp "[2001:db8::7]:5353 -> [2001:db8::100]:53"',
    ],
)
@click.argument("connection", type=CONNECTION, nargs=1, metavar='"SRC:PORT -> DST:PORT"')
@click.option("--proto", "protocol", type=click.Choice([str(p.value) for p in Protocol]), default="tcp", help="Transport.")
@pass_session
def show_(session: Session, connection: tuple[tuple[str, int], tuple[str, int]], protocol: str) -> None:
    """Show which farm, backend and rewrite a connection gets, and why; the connection need not exist."""
    (source, source_port), (destination, destination_port) = connection
    result = session.call(
        "conn.show",
        source=source,
        source_port=source_port,
        destination=destination,
        destination_port=destination_port,
        protocol=protocol,
    )
    show(session.json, result, _print_explanation)


@conn.command(
    "flush",
    examples=[
        "xlbctl conn flush --farm web",
        "xlbctl conn flush --farm web --backend 10.77.0.11:8080",
        "xlbctl conn flush --yes",
    ],
)
@_farm_option
@click.option(
    "--backend", type=ENDPOINT, metavar="ADDR:PORT", shell_complete=complete_backend, help="Only connections to this server."
)
@yes_option
@pass_session
def flush(session: Session, farm: str | None, backend: tuple[str, int] | None, yes: bool) -> None:
    """Delete connections from the flow maps.

    Without a filter this breaks the connections of all farms; on a terminal it asks for confirmation."""
    if farm is None and backend is None and not yes and sys.stdin.isatty():
        click.confirm("Break every connection through this node?", abort=True, err=True)
    text = format_endpoint(*backend) if backend else None
    show(session.json, session.call("conn.flush", farm=farm, backend=text), _print_flushed)


def _print_connections(answer: dict[str, Any]) -> None:
    rows = [
        (c["protocol"], c["client"], c["vip"], c["backend"], c["farm"], c["state"], f"{c['idle_s']:.1f} s")
        for c in answer["connections"]
    ]
    print_table(CONNECTION_COLUMNS, rows, "No connections.")
    if answer["total"] > len(rows):
        click.echo(f"{answer['total'] - len(rows)} more not shown: use --limit or --farm", err=True)


def _print_count(answer: dict[str, Any]) -> None:
    click.echo(str(answer["total"]))


def _print_flushed(answer: dict[str, Any]) -> None:
    click.echo(f"{answer['removed']} flow entries removed (a connection has two)")


def _print_explanation(answer: dict[str, Any]) -> None:
    """Print the outcome, then the steps that lead to it."""
    existing = "an existing connection" if answer["exists"] else "a new connection"
    outcomes = {
        "forward": f"{existing}, forwarded to {answer['backend']}",
        "either": "a new connection, forwarded to the next backend in turn",
    }
    fields = [("outcome", outcomes.get(answer["verdict"], f"{answer['why']} ({answer['verdict']})"))]
    fields += [(name, answer[name]) for name in ("farm", "rewrite") if answer[name]]
    print_fields(fields)
    click.echo()
    for position, step in enumerate(answer["steps"], 1):
        print_item(f"{position}.", step)
