"""`xlbctl vip`: the virtual addresses."""

from __future__ import annotations

from typing import Any

import click

from ctl.cli.base import Session, XlbGroup, pass_session
from ctl.cli.options import ADDRESS_WITH_PREFIX, VIP_ADDRESS, complete_vip
from ctl.cli.output import print_table, show
from ctl.cli.terminal.tables import Column

COLUMNS = (Column("ADDRESS"), Column("DEVICE"), Column("GUARD", priority=1))


GUARD_HELP = "Answer only the farms' ports and ICMP on this address."


@click.group(cls=XlbGroup, examples=["xlbctl vip add 10.77.0.100/24 --dev eth0", "xlbctl vip list"])
def vip() -> None:
    """Virtual IP addresses: clients connect to them, and they move between the nodes of a pair."""


@vip.command(
    "add",
    examples=[
        "xlbctl vip add 10.77.0.100/24 --dev eth0",
        "xlbctl vip add 2001:db8::100/64 --dev eth0",
        "xlbctl vip add 10.77.0.101/24 --dev eth0 --no-guard",
    ],
)
@click.argument("address", type=ADDRESS_WITH_PREFIX, metavar="ADDR/PREFIX")
@click.option("--dev", "device", required=True, metavar="INTERFACE", help="Interface the address is added to.")
@click.option("--guard/--no-guard", default=True, help=GUARD_HELP)
@click.option("--force", is_flag=True, help="Accept an address that a node has itself.")
@pass_session
def add(session: Session, address: str, device: str, guard: bool, force: bool) -> None:
    """Add a virtual address to an interface."""
    added = session.call("vip.add", address=address, device=device, guard=guard, force=force or None)
    show(session.json, added, lambda _: click.echo(f"vip {address} added on {device}"))


@vip.command("set", examples=["xlbctl vip set 10.77.0.100 --no-guard", "xlbctl vip set 10.77.0.100 --guard"])
@click.argument("address", type=VIP_ADDRESS, metavar="ADDR", shell_complete=complete_vip)
@click.option("--guard/--no-guard", default=None, help=GUARD_HELP)
@click.pass_context
def set_(ctx: click.Context, /, address: str, guard: bool | None) -> None:
    """Change the guard of a virtual address; connections continue."""
    if guard is None:
        raise click.UsageError("nothing to change: give --guard or --no-guard", ctx)
    session = ctx.find_object(Session)
    assert session is not None
    changed = session.call("vip.set", address=address, guard=guard)
    show(session.json, changed, lambda _: click.echo(f"vip {address} changed: guard {'on' if guard else 'off'}"))


@vip.command("list", examples=["xlbctl vip list", "xlbctl vip list -o json"])
@pass_session
def list_(session: Session) -> None:
    """List the virtual addresses."""
    show(session.json, session.call("vip.list"), _print_vips)


@vip.command("delete", examples=["xlbctl vip delete 10.77.0.100"])
@click.argument("address", type=VIP_ADDRESS, metavar="ADDR", shell_complete=complete_vip)
@pass_session
def delete(session: Session, address: str) -> None:
    """Delete a virtual address that no farm uses."""
    result = session.call("vip.delete", address=address)
    show(session.json, result, lambda _: click.echo(f"vip {address} deleted"))


def _print_vips(vips: list[dict[str, Any]]) -> None:
    rows = [(f"{vip['address']}/{vip['prefix_length']}", vip["device"], "on" if vip["guard"] else "off") for vip in vips]
    print_table(COLUMNS, rows, "No virtual addresses yet: add one with 'xlbctl vip add ADDR/PREFIX --dev INTERFACE'.")
