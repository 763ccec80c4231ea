"""Writes the man pages: xlbctl.8 from the command itself, those of xlbd and xlb-web from docs/man and their parsers.

Usage: python docs/make_man.py DIRECTORY
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from ctl import daemon
from ctl.cli.base import XlbCommand, XlbGroup
from ctl.cli.main import main as xlbctl
from ctl.diagnosis.redundancy import VERDICTS
from ctl.web import main as web

HEADER = '.TH XLBCTL 8 "" "xlb" "System Administration"'
TAIL = r"""
.SH EXIT STATUS
.TP
.B 0
Done. For \fBdiff\fR: no differences.
.TP
.B 1
Refused or failed at run time, or a check failed. For \fBdiff\fR: differences.
.TP
.B 2
Wrong usage or invalid input; nothing was changed. The message on standard error names the key and what was expected.
.PP
\fBcluster status \-\-check\fR exits as monitoring plugins do:
@CHECK@
.SH ENVIRONMENT
.TP
.B XLB_CONFIG
Node file to use where \fB\-\-config\fR is not given.
.TP
.B NO_COLOR
If set, output has no colours.
.SH FILES
.TP
.I /etc/xlb/node.toml
Node file; see \fBxlbd\fR(8).
.TP
.I /run/xlb/control.sock
The daemon's control socket, open to root and the group xlb.
.SH SEE ALSO
.BR xlbd (8),
.BR xlb\-web (8)
"""


def escape(text: str) -> str:
    """Return text so that roff prints it literally."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    text = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", text)
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


def paragraphs(text: str) -> Iterator[str]:
    """Return a docstring's paragraphs, each on one line."""
    for number, block in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        yield escape(" ".join(block.split()))


def options(command: click.Command, context: click.Context, session: bool) -> Iterator[str]:
    """Return a command's options; those that every command has only if `session` is true."""
    for parameter in command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record and (parameter.expose_value or session):
            yield from (".TP", f".B {escape(record[0])}", escape(" ".join(record[1].split())))


def examples(command: XlbCommand | XlbGroup) -> Iterator[str]:
    """Return the examples as they are typed."""
    if command.examples:
        yield from (".PP", ".EX", *(f"    {escape(line)}" for line in command.examples), ".EE")


def sections(command: click.Command, parent: click.Context | None, path: str) -> Iterator[str]:
    """Return a subsection for each command that is not a group, depth first."""
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent, show_default=True)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from sections(child, context, f"{path} {name}")
        return
    assert isinstance(command, XlbCommand)
    usage = " ".join(piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]")
    yield f'.SS "{escape(f"{path} {usage}".strip()).replace(chr(34), "")}"'
    yield from paragraphs(command.help or "")
    yield from options(command, context, session=False)
    yield from examples(command)


def xlbctl_page() -> str:
    """Return xlbctl.8."""
    context = click.Context(xlbctl, info_name="xlbctl")
    lines = [HEADER, ".SH NAME", r"xlbctl \- control the XDP load balancer xlb", ".SH SYNOPSIS"]
    lines += [
        r".B xlbctl",
        r"[\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGUMENTS\fR]",
        ".SH DESCRIPTION",
        *paragraphs(xlbctl.help or ""),
    ]
    lines += [".SH OPTIONS", "Every command takes these, before or after its name.", *options(xlbctl, context, session=True)]
    lines += [".SH EXAMPLES", *examples(xlbctl), ".SH COMMANDS", *sections(xlbctl, None, "xlbctl")]
    codes = (f".TP\n.B {each.exit_code}\n{each.word}: {escape(each.meaning)}." for each in VERDICTS)
    return "\n".join(lines) + TAIL.replace("@CHECK@", "\n".join(codes))


def page_of(name: str, parser: argparse.ArgumentParser) -> str:
    """Return docs/man/NAME.8 with the options of the parser."""
    lines = []
    for action in parser._actions:
        names = f"{', '.join(action.option_strings)} {action.metavar or '|'.join(action.choices or ())}".rstrip()
        text = (action.help or "").replace("%(default)s", str(action.default))
        lines += [".TP", f".B {escape(names)}", escape(text[:1].upper() + text[1:] + ".")]
    template = (Path(__file__).parent / "man" / f"{name}.8").read_text()
    return template.replace("\n@OPTIONS@\n", "\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "xlbctl.8").write_text(xlbctl_page())
    (directory / "xlbd.8").write_text(page_of("xlbd", daemon._parser()))
    (directory / "xlb-web.8").write_text(page_of("xlb-web", web.parser()))
