"""The errors people see. Each names the thing, the cause and the remedy; programs decide by the class and the code.

The exit code and the kind follow from the class. The message is for people and may change with any version; the codes of
`Code` are a contract: one is added for a new cause, none is renamed or removed.
"""

from __future__ import annotations

import errno
from enum import StrEnum
from typing import Self


class Code(StrEnum):
    """What went wrong, as programs read it: on the control socket, between the nodes and in tests."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        """`meaning`: the line of the catalogue in docs/CONTROL.md."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    REFUSED = "refused", "refused or failed for a cause that has no code of its own"
    INVALID_VALUE = "invalid_value", "an argument, an option or a line of a file has a value that is not allowed"
    INTERNAL = "internal", "a bug in xlbd; its log has the stack trace"
    UNCODED = "uncoded", "a daemon of an earlier version reported the error, without a code"
    # the control socket
    MALFORMED_REQUEST = "malformed_request", "the message is not a request of this protocol"
    UNKNOWN_COMMAND = "unknown_command", "the daemon does not know the command; it may be older than the client"
    UNKNOWN_ARGUMENT = "unknown_argument", "the command or section has no argument of that name"
    MISSING_ARGUMENT = "missing_argument", "a required argument or key is missing"
    BUSY = "busy", "too many requests or changes are waiting; try again"
    REQUEST_TOO_LONG = "request_too_long", "the request is longer than a daemon reads at once"
    ANSWER_TOO_LONG = "answer_too_long", "the answer is longer than a client reads at once; ask for less"
    DAEMON_NOT_RUNNING = "daemon_not_running", "no daemon listens on the control socket"
    DAEMON_SILENT = "daemon_silent", "the daemon did not answer in time; the outcome is unknown"
    NOT_PERMITTED = "not_permitted", "the user or the process lacks a permission"
    # xlb-web
    UNKNOWN_PATH = "unknown_path", "xlb-web has no such path, or the path has no such method"
    NOT_LOGGED_IN = "not_logged_in", "the request has no session and no token, or they have ended"
    LOGIN_REFUSED = "login_refused", "user name or password is wrong"
    TOO_MANY_LOGINS = "too_many_logins", "too many logins failed; wait"
    # the configuration
    UNKNOWN_VIP = "unknown_vip", "there is no such virtual address"
    UNKNOWN_FARM = "unknown_farm", "there is no such farm"
    UNKNOWN_BACKEND = "unknown_backend", "the farm has no such backend"
    UNKNOWN_INTERFACE = "unknown_interface", "the node has no such interface"
    VIP_EXISTS = "vip_exists", "the virtual address exists already"
    FARM_EXISTS = "farm_exists", "the farm exists already"
    BACKEND_EXISTS = "backend_exists", "the farm has the backend already"
    VIP_IN_USE = "vip_in_use", "a farm uses the virtual address"
    UNKNOWN_PREFIXES = "unknown_prefixes", "there is no such prefix list"
    PREFIXES_IN_USE = "prefixes_in_use", "a farm uses the prefix list"
    UNKNOWN_USER = "unknown_user", "there is no such user of xlb-web"
    USER_EXISTS = "user_exists", "the user exists already"
    UNKNOWN_TOKEN = "unknown_token", "there is no such API token"
    TOKEN_EXISTS = "token_exists", "an API token of that name or with that digest exists already"
    UNKNOWN_GENERATION = "unknown_generation", "the node's history has no such generation"
    OWN_ADDRESS = "own_address", "the address is a node's own, a VIP or a backend's, and cannot be the other as well"
    LISTENER_IN_USE = "listener_in_use", "another farm has this VIP, port and protocol"
    LIMIT_EXCEEDED = "limit_exceeded", "the configuration would exceed a limit of the data plane"
    DISK_FULL = "disk_full", "the file system that holds the state is full"
    STORAGE_FAILED = "storage_failed", "a file of the node could not be read or written"
    DAMAGED_FILE = "damaged_file", "a state file is damaged"
    NEWER_FORMAT = "newer_format", "a file or message was written by a later version of xlb"
    KERNEL_REFUSED = "kernel_refused", "the kernel refused an operation on maps, addresses or interfaces"
    CAPTURE_RUNS = "capture_runs", "another client captures packets on the node; one can at a time"
    CAPTURE_ENDED = "capture_ended", "the program was replaced during a capture, which has ended"
    # the pair
    PAIR_EXISTS = "pair_exists", "the node is in a pair already"
    NOT_IN_PAIR = "not_in_pair", "the node is single"
    ADDRESS_IN_USE = "address_in_use", "another machine on the link answers for the address"
    PAIR_LOST = "pair_lost", "the node belongs to a pair, and its cluster.json is gone: it serves and changes nothing"
    NOT_SERVING = "not_serving", "the node is not the active node, which accepts changes"
    PEER_SERVES = "peer_serves", "both nodes are active at this moment"
    NO_ACTIVE_NODE = "no_active_node", "neither node is active at this moment"
    PEER_UNREACHABLE = "peer_unreachable", "the peer is not connected; nothing was sent"
    PEER_SILENT = "peer_silent", "the peer did not answer in time; the outcome is unknown"
    PEER_VERSION = "peer_version", "the two nodes run versions that do not understand each other here"
    CHANGE_INTERRUPTED = "change_interrupted", "the node lost its role during a change; look for it on the active node"
    CHANGE_OVERTAKEN = "change_overtaken", "another change or a newer configuration came first; try again"
    FAILOVER_REFUSED = "failover_refused", "the failover machine refused a switchover, a failback or maintenance"
    # making a pair
    WRONG_TOKEN = "wrong_token", "the token is damaged or is not the newest one of that node"
    TOKEN_USED = "token_used", "the token was used already"
    TOKEN_EXPIRED = "token_expired", "the token has expired"
    TOKEN_VOID = "token_void", "the token is void: too many wrong ones were tried"
    CREATOR_UNREACHABLE = "creator_unreachable", "the node that made the token cannot be reached or does not answer"
    NOT_PROVEN = "not_proven", "the answer does not prove that its sender knows the token"
    NODES_DIFFER = "nodes_differ", "versions or failover times of the two nodes differ"
    NODES_CONFLICT = "nodes_conflict", "names, addresses or priorities of the two nodes do not form a pair"
    PAIR_UNCONFIRMED = "pair_unconfirmed", "the other node did not confirm the pair"
    CANCELLED = "cancelled", "a person did not confirm it or cancelled it; both nodes are as they were"
    CREATION_RUNS = "creation_runs", "xlb-web creates a pair at this moment; it creates one at a time"
    UNKNOWN_QUESTION = "unknown_question", "the creation of a pair does not ask this, or has the answer"
    SSH_FAILED = "ssh_failed", "the peer cannot be reached by SSH, or a command there failed"
    SSH_LOGIN_REFUSED = "ssh_login_refused", "the peer refuses the SSH login"
    HOST_KEY_UNKNOWN = "host_key_unknown", "the peer's SSH host key is not known"
    HOST_KEY_CHANGED = "host_key_changed", "the peer's SSH host key is not the known one"


class Advice(str):
    """A message whose remedy can be shown apart from it, as in the columns of `doctor`; as a string it is both."""

    __slots__ = ("message", "remedy")
    message: str
    remedy: str

    def __new__(cls, message: str, remedy: str) -> Self:
        """The string is "message: remedy"."""
        advice = super().__new__(cls, f"{message}: {remedy}")
        advice.message, advice.remedy = message, remedy
        return advice


def storage_code(error: OSError) -> Code:
    """The code of a file operation that failed."""
    return Code.DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else Code.STORAGE_FAILED


class XlbError(Exception):
    """Something refused or failed at run time (exit code 1).

    `code` is a `Code`, or a string of a later version; `key` is empty unless input is at fault; `detail` is the message without
    the key in front.
    """

    exit_code = 1
    kind = "refused"
    key = ""

    def __init__(self, message: str, code: str = Code.REFUSED) -> None:
        super().__init__(message)
        self.detail = message
        self.code = code


class InternalError(XlbError):
    """A command ended with an exception that nothing expected: a bug, which must not take the node down."""

    kind = "internal"

    def __init__(self, command: str, cause: Exception) -> None:
        super().__init__(f"{command} failed inside xlbd ({type(cause).__name__}); see its log", Code.INTERNAL)


class InvalidInput(XlbError):
    """What was asked makes no sense (exit code 2); nothing was changed.

    `key` is the option, file key or argument at fault, e.g. "farm.web.port"; empty when no single one is.
    """

    exit_code = 2
    kind = "invalid"

    def __init__(self, message: str, key: str = "", code: str = Code.INVALID_VALUE) -> None:
        super().__init__(f"{key}: {message}" if key else message, code)
        self.detail = message
        self.key = key


def code_of(error: Exception, otherwise: Code) -> str:
    """The code of an error that is reported as part of another one; `otherwise`: of an error without a code."""
    return error.code if isinstance(error, XlbError) else otherwise


def reported(kind: str, message: str, key: str, code: str) -> XlbError:
    """The error another process reported; `message` names the key already."""
    if kind != InvalidInput.kind:
        return XlbError(message, code)
    return InvalidInput(message.removeprefix(f"{key}: ") if key else message, key, code)
