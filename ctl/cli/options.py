"""Parameter types and option sets that several commands share.

Decides which strings are an endpoint, an address, ports or a connection. Must not know what is configured.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctl.config.model import CheckKind, Mode, Protocol, format_endpoint, format_ports
from ctl.config.settings import CHECK_SETTINGS, FARM_SETTINGS, Setting

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ctl.cli.base import Session

    ParamType = click.ParamType[Any]  # generic in newer versions than Debian's
else:
    ParamType = click.ParamType

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

COMPLETION_TIMEOUT_MS = 500
DEFAULT = "default"
"""On the command line, the empty value of a choice."""
_CONNECTION = re.compile(r"\s*(\S+?)\s*(?:->|→|>|,|\s)\s*(\S+)\s*")


def parse_port(text: str) -> int:
    """Return a port from 1 to 65535; raises ValueError with what was expected."""
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:6]) <= 65535:
        raise ValueError(f"'{text}' is not a port; expected 1 to 65535")
    return int(text)


def parse_address(text: str) -> str:
    """Return an IPv4 or IPv6 address in its canonical form; raises ValueError with what was expected."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise ValueError(f"'{text}' is not an IP address; expected something like 10.0.0.1 or 2001:db8::1") from None
    if getattr(address, "scope_id", None):
        raise ValueError(f"'{text}' has a zone; expected an address without %{address.scope_id}")  # type: ignore[union-attr]
    return str(address)


def parse_endpoint(text: str) -> tuple[str, int]:
    """Return address and port of ADDR:PORT or [ADDR]:PORT; raises ValueError with what was expected."""
    address, colon, port = text.rpartition(":")
    if not colon or not address or (":" in address and not (address.startswith("[") and address.endswith("]"))):
        raise ValueError(f"'{text}' is not ADDR:PORT; expected something like 10.0.0.1:80 or [2001:db8::1]:80")
    return parse_address(address), parse_port(port)


def parse_connection(text: str) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return source and destination of "SRC:PORT -> DST:PORT"; raises ValueError with what was expected."""
    match = _CONNECTION.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is not a connection; expected \"SRC:PORT -> DST:PORT\"")
    source, destination = parse_endpoint(match[1]), parse_endpoint(match[2])
    if (":" in source[0]) != (":" in destination[0]):
        raise ValueError(f"'{text}' mixes IPv4 and IPv6; expected both ends of one family")
    return source, destination


def parse_server(text: str) -> tuple[str, int | None]:
    """Return address and port of ADDR:PORT; the port may be missing, also of [ADDR]."""
    if text.count(":") == 0 or text.endswith("]"):
        return parse_address(text), None
    return parse_endpoint(text)


def parse_client(text: str) -> tuple[str, int | None]:
    """Return address and port of a client; without brackets, an IPv6 address has no port."""
    return (parse_address(text), None) if text.count(":") > 1 and "]" not in text else parse_server(text)


class _Parsed(ParamType):
    """A parameter that a function parses; the message of its ValueError is shown to the user."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse `value`, unless it already is one."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _parse_ports(text: str) -> int | str:
    if text == "all":
        return text
    ranges = [_parse_range(each.strip()) for each in text.split(",")]
    return ranges[0][0] if ranges == [(ranges[0][0], ranges[0][0])] else format_ports(ranges)


def _parse_range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    found = parse_port(first), parse_port(last if dash else first)
    if found[0] > found[1]:
        raise ValueError(f"'{text}' ends before it starts; expected a range like 8000-8010")
    return found


def _parse_prefix(text: str) -> str:
    address, slash, prefix = text.partition("/")
    if not slash:
        raise ValueError(f"'{text}' has no prefix length; expected something like 10.0.0.100/24 or 2001:db8::100/64")
    address = parse_address(address)
    longest = 128 if ":" in address else 32
    if not (prefix.isascii() and prefix.isdigit() and int(prefix[:4]) <= longest):
        raise ValueError(f"'{prefix}' is not a prefix length; expected 0 to {longest}")
    return f"{address}/{int(prefix)}"


def _parse_vip_address(text: str) -> str:
    """For `vip delete`: ignores a prefix length, as `vip list` prints it."""
    return parse_address(text.partition("/")[0])


def _parse_command(text: str) -> list[str]:
    """Quotes and backslashes as in a shell; nothing is expanded."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is not a command: {str(error).lower()}; expected a path and arguments") from None


def number(first: int, last: int = 2**31 - 1) -> ParamType:
    """Return the type of a whole number from `first` to `last`."""
    expected = f"expected a whole number from {first} to {last}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"'{text}' is not a number; {expected}") from None
        if not first <= value <= last:
            raise ValueError(f"{value} is out of range; {expected}")
        return value

    return _Parsed("N", parse)


ADDRESS = _Parsed("ADDR", parse_address)
ADDRESS_OR_DEFAULT = _Parsed("ADDR", lambda text: text and parse_address(text))
ADDRESSES = _Parsed("ADDR[,ADDR…]", lambda text: ",".join(parse_address(each.strip()) for each in text.split(",")))
ADDRESS_WITH_PREFIX = _Parsed("ADDR/PREFIX", _parse_prefix)
ENDPOINT = _Parsed("ADDR:PORT", parse_endpoint)
CLIENT = _Parsed("ADDR[:PORT]", parse_client)
SERVER = _Parsed("ADDR[:PORT]", parse_server)
PORTS = _Parsed("PORT[-LAST][,…]", _parse_ports)
PORT = _Parsed("PORT", parse_port)
VIP_ADDRESS = _Parsed("ADDR", _parse_vip_address)
CONNECTION = _Parsed("SRC:PORT -> DST:PORT", parse_connection)


def complete_from_daemon(list_names: Callable[[Session, dict[str, Any]], list[str]]) -> Callable[..., list[CompletionItem]]:
    """Return a completion that asks the daemon; it is empty if no daemon answers in time."""

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from ctl.cli.base import Session
        from ctl.errors import XlbError

        session = ctx.find_root().ensure_object(Session)
        session.timeout_ms = COMPLETION_TIMEOUT_MS
        try:
            return [CompletionItem(name) for name in list_names(session, ctx.params) if name.startswith(incomplete)]
        except XlbError:
            return []
        finally:
            session.close()

    return complete


def _farm_names(session: Session, _params: dict[str, Any]) -> list[str]:
    return sorted(farm["name"] for farm in session.call("farm.list"))


def _backend_names(session: Session, params: dict[str, Any]) -> list[str]:
    backends = session.call("farm.show", name=params.get("farm"))["backends"]
    return [format_endpoint(backend["address"], backend["port"]) for backend in backends]


def _vip_names(session: Session, _params: dict[str, Any]) -> list[str]:
    return [vip["address"] for vip in session.call("vip.list")]


complete_generation = complete_from_daemon(lambda session, _: [each["name"] for each in session.call("config.history")])
complete_farm = complete_from_daemon(_farm_names)
complete_backend = complete_from_daemon(_backend_names)
complete_vip = complete_from_daemon(_vip_names)


def listener(farm: dict[str, Any]) -> str:
    """Where a farm of `farm.list` listens: ADDR:PORT, or several."""
    return " ".join(format_endpoint(vip, farm["port"]) for vip in farm["vip"].split(","))


complete_listener = complete_from_daemon(
    lambda session, _: [each for farm in session.call("farm.list") for each in listener(farm).split(" ")]
)


def farm_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """FARM, completed from the configured farms."""
    return click.argument("farm", shell_complete=complete_farm)(command)


def endpoint_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """ADDR:PORT of an existing backend, completed from the farm's."""
    return click.argument("endpoint", type=SERVER, metavar="ADDR[:PORT]", shell_complete=complete_backend)(command)


def dry_run_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--dry-run`: see ctl/cli/output.py."""
    return click.option("--dry-run", is_flag=True, help="Show what would happen to connections and clients; change nothing.")(
        command
    )


def yes_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--yes`: ask nothing."""
    return click.option("--yes", is_flag=True, help="Do not ask for confirmation.")(command)


def file_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`-f FILE`: the farms file, "-" for standard input."""
    return click.option(
        "-f",
        "--file",
        "path",
        required=True,
        type=click.Path(path_type=Path, allow_dash=True),
        metavar="FILE|-",
        help="Farms file (TOML).",
    )(command)


def _choice(kind: Any) -> click.Choice[str]:
    return click.Choice([str(member.value) for member in kind])


def setting_options(settings: Sequence[Setting], adding: bool, prefix: str = "") -> list[Decorator]:
    """An option for each setting of ctl/config/settings.py. adding: the help shows the defaults. prefix: of the name."""
    return [_setting_option(setting, adding, prefix) for setting in settings if setting.has_option]


def _setting_option(setting: Setting, adding: bool, prefix: str) -> Decorator:
    name = prefix + setting.name
    option = "--" + name.removesuffix("_s").replace("_", "-")
    text = setting.meaning.replace("`", "")
    if adding:
        text += f"  [default: {setting.shown_default.replace('`', '') or _shown(setting.default)}]"
    if isinstance(setting.default, bool):
        return click.option(f"{option}/--no-{option[2:]}", name, default=None, help=text)
    names = [option] if option[2:].replace("-", "_") == name else [option, f"{option}-s"]
    metavar = None if setting.allowed or setting.among else setting.unit
    return click.option(*names, name, type=_type(setting), metavar=metavar, help=text)


def _type(setting: Setting) -> ParamType:
    if setting.allowed:
        return click.Choice([each or DEFAULT for each in setting.allowed])
    if setting.among:
        return click.Choice([str(each) for each in (setting.default, *setting.among)])
    return number(setting.low, setting.high) if isinstance(setting.default, int) else _Parsed(setting.unit, _text(setting))


def _text(setting: Setting) -> Callable[[str], str]:
    """The parser of a string; an empty one stands for the default."""

    def parse(text: str) -> str:
        if text and re.fullmatch(setting.pattern, text) is None:
            raise ValueError(f"'{text}' is not allowed; expected {setting.expected}")
        return text

    return parse


def _shown(value: object) -> str:
    """A default as the command line has it."""
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def farm_options(adding: bool) -> Decorator:
    """Every setting of a farm. `farm add` shows the defaults; `farm set` changes only the given ones."""

    def default(text: str) -> str:
        return f"  [default: {text}]" if adding else ""

    options: list[Decorator] = [
        click.option(
            "--vip",
            type=ADDRESSES,
            required=adding,
            shell_complete=complete_vip,
            help="Virtual addresses the farm listens on, also of both families.",
        ),
        click.option("--port", type=PORTS, required=adding, help="Ports, like 80, 8000-8010, 80,443,8000-8010, or all."),
        click.option("--proto", type=_choice(Protocol), help=f"Transport.{default('tcp')}"),
        click.option(
            "--mode",
            type=click.Choice([each.value for each in Mode]),
            help=f"snat hides the client's address from backends, dnat keeps it.{default('snat')}",
        ),
        click.option(
            "--snat-address",
            type=ADDRESSES,
            help=f"VIPs that backends see in mode snat, at most 8 per family.{default('the VIP')}",
        ),
        *setting_options(FARM_SETTINGS, adding),
        *_check_options(default),
        *setting_options(CHECK_SETTINGS, adding, "check_"),
    ]
    return decorated(options)


def decorated(options: Sequence[Decorator]) -> Decorator:
    """A decorator that adds these options, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _check_options(default: Callable[[str], str]) -> list[Decorator]:
    positive = number(1)
    return [
        click.option(
            "--check",
            "check_kind",
            type=_choice(CheckKind),
            help=f"Kind of health check.{default('tcp for tcp, none for udp')}",
        ),
        click.option("--check-interval-ms", type=positive, metavar="MS", help=f"Time between probes.{default('2000')}"),
        click.option(
            "--check-timeout-ms", type=positive, metavar="MS", help=f"Timeout of one probe.{default('1000, or the interval')}"
        ),
        click.option(
            "--check-rise", type=positive, metavar="N", help=f"Successes in a row that mark a backend up.{default('2')}"
        ),
        click.option(
            "--check-fall", type=positive, metavar="N", help=f"Failures in a row that mark a backend down.{default('3')}"
        ),
        click.option("--check-port", type=PORT, help="Port to probe." + default("the backend's own")),
        click.option("--check-path", metavar="PATH", help=f"Path to GET (http, https).{default('/')}"),
        click.option("--check-status", metavar="STATUS", help=f"Accepted status or range (http, https).{default('200-399')}"),
        click.option("--check-host", metavar="HOST", help="Host header (http, https)." + default("the backend's address")),
        click.option("--check-address", type=ADDRESS_OR_DEFAULT, help="Address to probe." + default("the backend's own")),
        click.option(
            "--check-command",
            type=_Parsed("COMMAND", _parse_command),
            help="Program and arguments (command); split like a shell does, but run without one." + default("none"),
        ),
    ]


def collect_fields(options: dict[str, Any], settings: Sequence[Setting]) -> dict[str, Any]:
    """Return the given options as fields of the request."""
    given = {name: value for name, value in options.items() if value is not None}
    for setting in settings:
        if setting.name in given and setting.among:
            given[setting.name] = int(given[setting.name])
        elif setting.name in given and setting.allowed and given[setting.name] == DEFAULT:
            given[setting.name] = ""
    return given


def collect_farm_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return the given options as fields of the request, those of the health check under "health"."""
    given = collect_fields(options, FARM_SETTINGS)
    health = {name.removeprefix("check_"): given.pop(name) for name in list(given) if name.startswith("check_")}
    return given | ({"health": health} if health else {})
