"""The base of every xlbctl command: session, examples in --help, did-you-mean, and one message per error.

Decides how commands are found, how they fail and what `-o` and `--config` mean. Must not know what a command does.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import click

from ctl.errors import Code, InvalidInput, XlbError

if TYPE_CHECKING:
    from ctl.api.client import Client

DEFAULT_SOCKET = Path("/run/xlb/control.sock")  # on a machine without a node file
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@dataclass(slots=True)
class Session:
    """The daemon to connect to and the output format, from the command line."""

    config: Path | None = None
    output: str = "table"
    timeout_ms: int = 30_000
    _client: Client | None = field(default=None, repr=False)

    @property
    def json(self) -> bool:
        """Whether stdout carries one JSON document and nothing else."""
        return self.output == "json"

    def socket_path(self) -> Path:
        """Control socket that the node file names. Raises XlbError when it does not."""
        from ctl.state import node_file

        if self.config is None and not node_file.DEFAULT_PATH.exists():
            return DEFAULT_SOCKET
        if self.config is not None and not self.config.exists():
            raise InvalidInput(f"file {self.config} does not exist", "--config")
        return Path(node_file.load(self.config or node_file.DEFAULT_PATH).control_endpoint.removeprefix("ipc://"))

    def _connect(self) -> Client:
        """To the daemon of this node file; one that runs is found although the file is wrong or names another socket by now."""
        from ctl.api.caller import claimed
        from ctl.api.client import Client

        configured, sudo_user = None, claimed(os.environ.get("SUDO_USER"))
        try:
            configured = self.socket_path()
            return Client(configured, self.timeout_ms, sudo_user)
        except XlbError as error:
            if configured is not None and error.code != Code.DAEMON_NOT_RUNNING:
                raise
            running = self._running()
            if running is None or running == configured:
                raise
            client = Client(running, self.timeout_ms, sudo_user)
            why = error if configured is None else f"nothing listens on {configured}"
            click.echo(f"xlbctl: {why}; asking the xlbd that runs, at {running}", err=True)
            return client

    def _running(self) -> Path | None:
        from ctl.api.running import socket_of
        from ctl.state import node_file

        found = socket_of(self.config or node_file.DEFAULT_PATH, node_file.DEFAULT_PATH)
        return DEFAULT_SOCKET if found is None and self.config is None and DEFAULT_SOCKET.exists() else found

    def call(self, command: str, **args: Any) -> Any:
        """Send `command` to the daemon and return its result; arguments that are None are left out."""
        if self._client is None:
            self._client = self._connect()
            self._client.progress = lambda step: click.echo(f"xlbctl: {step}", err=True)
        result = self._client.call(command, {name: value for name, value in args.items() if value is not None})
        if self._client.note:
            click.echo(f"xlbctl: {self._client.note}", err=True)
        return result

    def close(self) -> None:
        """Disconnect, if connected."""
        if self._client is not None:
            self._client.close()
            self._client = None


pass_session = click.make_pass_decorator(Session)


def _store(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Callback of a session option: store its value, at any level of the command."""

    def callback(ctx: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        session = ctx.find_root().ensure_object(Session)
        if value is not None:
            setattr(session, name, value)
        return value

    return callback


def _session_options() -> list[click.Parameter]:
    """`-o` and `--config`, accepted before and after the command's name."""
    return [
        click.Option(
            ["-o", "--output"],
            type=click.Choice(["table", "json"]),
            expose_value=False,
            callback=_store("output"),
            help="Print tables or one JSON document.  [default: table]",
        ),
        click.Option(
            ["--config"],
            type=click.Path(dir_okay=False, path_type=Path),
            envvar="XLB_CONFIG",
            expose_value=False,
            callback=_store("config"),
            metavar="FILE",
            help="Node file of the daemon to connect to.  [default: /etc/xlb/node.toml]",
        ),
    ]


class _WithExamples(click.Command):
    """A command with the session's options and an Examples section in its help."""

    settings: ClassVar[dict[str, Any]] = {"help_option_names": ["-h", "--help"]}

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", self.settings)
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.params += _session_options()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples where click puts the epilog."""
        write_examples(self.examples, formatter)
        super().format_epilog(ctx, formatter)


class XlbCommand(_WithExamples):
    """A verb; its help shows the default of each option."""

    settings: ClassVar[dict[str, Any]] = {**_WithExamples.settings, "show_default": True}


class XlbGroup(_WithExamples, click.Group):
    """A noun: resolves its verbs and suggests a close match for an unknown one."""

    command_class = XlbCommand
    group_class = type

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order of their definition."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without a verb, print the help on stderr and exit 2; versions of click differ here."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(InvalidInput.exit_code)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or fail with the closest name."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(known)}"
            ctx.fail(f"no such command '{name}'; {hint}")
        return super().resolve_command(ctx, args)


class RootGroup(XlbGroup):
    """`xlbctl` itself: imports a noun's module on demand, and prints every error as one message."""

    def __init__(self, *args: Any, lazy: dict[str, str], **kwargs: Any) -> None:
        """`lazy` maps a command's name to "module:attribute"."""
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All nouns, in the order of the contract."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the noun's module and return its command."""
        if cmd_name not in self.lazy:
            return None
        module, attribute = self.lazy[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """Run and exit with the contract's code: 0 done, 1 refused or failed, 2 invalid."""
        kwargs |= {"prog_name": "xlbctl", "standalone_mode": False}
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(*args, **kwargs)
        try:
            sys.exit(run(*args, **kwargs) or 0)
        except XlbError as error:
            fail(str(error), error.exit_code)
        except click.UsageError as error:
            fail(usage_sentence(error), InvalidInput.exit_code)
        except click.ClickException as error:
            fail(error.format_message(), XlbError.exit_code)
        except click.Abort:
            fail("interrupted", EXIT_INTERRUPTED)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, then close the connection to the daemon."""
        try:
            return super().invoke(ctx)
        finally:
            ctx.ensure_object(Session).close()


def fail(message: str, exit_code: int) -> NoReturn:
    """Print the message on stderr and exit."""
    click.echo(f"xlbctl: {message}", err=True)
    sys.exit(exit_code)


def usage_sentence(error: click.UsageError) -> str:
    """One line that names the wrong argument and the help to read."""
    message = " ".join(error.format_message().split()).rstrip(".")
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter) and error.param is not None:
        message = f"{parameter_key(error.param)}: {' '.join(error.message.split()).rstrip('.')}"
    if error.ctx is not None:
        message += f" (see '{error.ctx.command_path} --help')"
    return message


def parameter_key(parameter: click.Parameter) -> str:
    """The name of a parameter in messages: an option's first long form, an argument's metavar."""
    if isinstance(parameter, click.Option):
        return next((each for each in parameter.opts if each.startswith("--")), parameter.opts[0])
    return parameter.human_readable_name


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """Add an Examples section; command lines are not wrapped."""
    if not examples:
        return
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{example}\n")
