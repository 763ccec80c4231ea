"""`xlbctl import`: the configuration of another load balancer as a farms file. Needs no daemon."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from ipaddress import ip_interface
from pathlib import Path

import click

from ctl.cli.base import Session, XlbCommand, pass_session
from ctl.cli.config import read_text
from ctl.cli.output import print_json
from ctl.config.validation import check_device
from ctl.errors import InvalidInput
from ctl.importing.addresses import DEFAULT_DEVICE, Choices
from ctl.importing.form import Finding, Included, Source
from ctl.importing.kinds import READERS, NothingToImport, import_from

MAX_INCLUDED_BYTES = 32 << 20
MAX_INCLUDED_FILES = 256
STANDARD_INPUT = "standard input"


def _device(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    if value:
        try:
            check_device(value, "--dev")
        except InvalidInput as error:
            raise click.BadParameter(error.detail) from None
    return value


def _vips(_ctx: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> tuple[tuple[str, int | None], ...]:
    made = []
    for value in values:
        try:
            interface = ip_interface(value)
        except ValueError:
            raise click.BadParameter(f"'{value}' is not ADDRESS or ADDRESS/LENGTH") from None
        made.append((str(interface.ip), interface.network.prefixlen if "/" in value else None))
    return tuple(made)


@click.command(
    "import",
    cls=XlbCommand,
    examples=[
        "xlbctl import keepalived keepalived.conf > farms.toml",
        "xlbctl import ipvsadm - --dev eth0 < ipvsadm.rules > farms.toml",
        "xlbctl import haproxy haproxy.cfg --vip 10.77.0.100/24 --dev eth0 > farms.toml",
        "xlbctl import nftlb nftlb.json -o json",
        "xlbctl import zevenet web_l4xnat.cfg mail_l4xnat.cfg > farms.toml",
    ],
)
@click.argument("kind", type=click.Choice(list(READERS)))
@click.argument("paths", metavar="FILE|-...", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--dev",
    callback=_device,
    default="",
    show_default=DEFAULT_DEVICE,
    metavar="INTERFACE",
    help="Interface of VIPs where the file names none.",
)
@click.option(
    "--vip",
    "vips",
    multiple=True,
    callback=_vips,
    metavar="ADDRESS[/LENGTH]",
    help="VIP of services that listen on all addresses; also the prefix length of a VIP. May be repeated.",
)
@pass_session
def import_(session: Session, kind: str, paths: tuple[Path, ...], dev: str, vips: tuple[tuple[str, int | None], ...]) -> None:
    """Print a farms file made of the configuration of another load balancer.

    KIND is keepalived (keepalived.conf), ipvsadm (ipvsadm-save -n, ipvsadm -S -n or ipvsadm -Ln), haproxy (haproxy.cfg, proxies
    of mode tcp), nftlb (its JSON) or zevenet (L4xNAT farms of Zevenet or SKUDONET, NAME_l4xnat.cfg).

    'xlbctl apply' removes what its file does not name, so name all files of the old balancer: one farms file is made of them.
    The result is valid for it. Standard error has a line for each statement that is not carried over, carried over
    differently, or assumed: where it is, why, and what to do. No daemon is needed and nothing is changed.
    """
    try:
        result = import_from(kind, [read_source(path) for path in paths], Choices(dev, vips))
    except NothingToImport as error:
        _print_findings(error.findings)
        raise
    _print_findings(result.findings)
    if session.json:
        print_json(result.as_document())
    else:
        click.echo(result.text, nl=False)


def _print_findings(findings: Sequence[Finding]) -> None:
    for each in findings:
        click.echo(str(each), err=True)


def read_source(path: Path) -> Source:
    """The file, or standard input, which can include files by their absolute path. Raises InvalidInput."""
    name = STANDARD_INPUT if str(path) == "-" else str(path)
    try:
        text = read_text(path, name)
    except InvalidInput as error:
        raise InvalidInput(error.detail, "FILE" if error.key == "--file" else error.key, error.code) from None
    return Source("stdin" if name == STANDARD_INPUT else name, text, _Includes().read, "" if name == STANDARD_INPUT else name)


class _Includes:
    """Reads included files, up to MAX_INCLUDED_BYTES."""

    def __init__(self) -> None:
        self._left = MAX_INCLUDED_BYTES

    def read(self, pattern: str, within: str) -> Included:
        """The regular files that a pattern names, relative to the directory of the file `within`."""
        if not within and not pattern.startswith("/"):
            return Included(problems=["a relative name, and the input is not a file"])
        sources, problems = [], []
        try:
            found = sorted(glob.glob(str(Path(within).parent / pattern)))  # noqa: PTH207 (a pattern may be absolute)
        except (OSError, ValueError):
            found = []
        for name in found[:MAX_INCLUDED_FILES]:
            path = Path(name)
            if path.is_dir():
                continue
            if not path.is_file():
                problems.append(f"{name} is not a regular file")
                continue
            try:
                text = read_text(path, name)
            except InvalidInput as error:
                problems.append(error.detail if error.key == "--file" else str(error))
                continue
            self._left -= len(text)
            if self._left < 0:
                problems.append(f"{name}: all files together are longer than {MAX_INCLUDED_BYTES >> 20} MiB")
                break
            sources.append(Source(name, text, self.read, name))
        if len(found) > MAX_INCLUDED_FILES:
            problems.append(f"it names more than {MAX_INCLUDED_FILES} files; the rest is not read")
        return Included(sources, problems)
