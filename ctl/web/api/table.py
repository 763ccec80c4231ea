"""Every path of the API: which control command it runs, and with what. The one table; requests and OpenAPI follow from it."""

from __future__ import annotations

from ctl.config.model import Role
from ctl.web.api import arguments, results
from ctl.web.api.routes import BIG_BODY, Parameter, Route

FARM = {"farm": "name"}
_CONNECTION = (
    Parameter("source", str, "address of the client", required=True),
    Parameter("destination", str, "address of the VIP", required=True),
    Parameter("destination_port", int, "port of the VIP", 0, 65535, required=True),
    Parameter("protocol", str, "tcp or udp"),
)
SHOW = (*_CONNECTION, Parameter("source_port", int, "port of the client", 0, 65535, required=True))
WHY = (*_CONNECTION, Parameter("source_port", int, "port of the client", 0, 65535))
OF_FARM = Parameter("farm", str, "only of this farm")

EXCEPTIONS = {
    "web.accounts": "what xlb-web itself needs to know who asks; password hashes leave the node in no answer",
    "watch": "GET /events and /events/recent",
    "config.version": "the version and ETag of each answer",
    "capture.start": "packets go to a client on the node itself: `xlbctl capture`",
    "capture.end": "of `xlbctl capture`",
}
"""Control commands without a path of their own, and why."""

SESSION = (
    Route("POST", "/session", "Log in; sets the cookie.", own="session.open", body="Login", open=True),
    Route("GET", "/session", "Who is logged in, and the CSRF token of the session.", own="session.show"),
    Route("DELETE", "/session", "Log out.", own="session.close", role=Role.VIEWER),
    Route(
        "PUT",
        "/session/password",
        "Change the own password; the user's other sessions end.",
        "user.set",
        own="session.password",
        body="OwnPassword",
        role=Role.VIEWER,
    ),
)
ACCOUNTS = (
    Route("GET", "/users", "The users, without passwords.", "user.list", role=Role.OPERATOR, versioned=True),
    Route("POST", "/users", "Add a user.", "user.add", own="user.add", body="NewUser", change=True),
    Route("PATCH", "/users/{name}", "Change role or password of a user.", "user.set", own="user.set", body="User", change=True),
    Route("DELETE", "/users/{name}", "Delete a user; his sessions end.", "user.delete", change=True),
    Route("GET", "/tokens", "The API tokens, without their text.", "token.list", role=Role.OPERATOR, versioned=True),
    Route(
        "POST",
        "/tokens",
        "Make a token; its text is in this answer only.",
        "token.add",
        own="token.add",
        body="NewToken",
        change=True,
    ),
    Route("DELETE", "/tokens/{name}", "Delete a token.", "token.delete", change=True),
)
VIPS = (
    Route("GET", "/vips", "The virtual addresses.", "vip.list", versioned=True),
    Route("POST", "/vips", "Add a virtual address.", "vip.add", body="NewVip", change=True),
    Route(
        "PATCH", "/vips/{address}", "Change a virtual address.", "vip.set", body="Vip", change=True, arguments=arguments.address
    ),
    Route("DELETE", "/vips/{address}", "Delete a virtual address.", "vip.delete", change=True, arguments=arguments.address),
)
FARMS = (
    Route("GET", "/farms", "The farms with their backends, states and counters.", "farm.list", versioned=True, listed=""),
    Route("POST", "/farms", "Add a farm.", "farm.add", body="NewFarm", change=True),
    Route("GET", "/farms/{farm}", "One farm.", "farm.show", versioned=True, names=FARM),
    Route(
        "PATCH",
        "/farms/{farm}",
        "Change settings of a farm; the others stay.",
        "farm.set",
        body="Farm",
        change=True,
        names=FARM,
    ),
    Route(
        "DELETE",
        "/farms/{farm}",
        "Delete a farm and its backends; its connections end.",
        "farm.delete",
        change=True,
        names=FARM,
    ),
    Route("POST", "/farms/{farm}/start", "Accept new connections again.", "farm.start", change=True, names=FARM),
    Route("POST", "/farms/{farm}/stop", "Accept no new connections.", "farm.stop", change=True, names=FARM),
    Route("POST", "/farms/{farm}/backends", "Add a backend.", "backend.add", body="NewBackend", change=True),
    Route(
        "PATCH",
        "/farms/{farm}/backends/{backend}",
        "Change settings of a backend; the others stay.",
        "backend.set",
        body="Backend",
        change=True,
        arguments=arguments.endpoint,
    ),
    Route(
        "DELETE",
        "/farms/{farm}/backends/{backend}",
        "Remove a backend.",
        "backend.remove",
        query=(Parameter("now", bool, "end its connections, also in a farm that keeps those of removed backends"),),
        change=True,
        arguments=arguments.endpoint,
    ),
    Route(
        "POST",
        "/farms/{farm}/backends/{backend}/drain",
        "Send a backend no new connections and let its connections finish.",
        "backend.drain",
        body="Drain",
        change=True,
        arguments=arguments.endpoint,
    ),
)
CONFIGURATION = (
    Route("GET", "/prefixes", "The prefix lists.", "prefixes.list", versioned=True),
    Route(
        "GET",
        "/prefixes/{name}",
        "One prefix list with its prefixes.",
        "prefixes.show",
        versioned=True,
        result=results.prefixes,
    ),
    Route(
        "PUT",
        "/prefixes/{name}",
        "Make a prefix list, or replace it.",
        "prefixes.set",
        body="Prefixes",
        change=True,
        limit=BIG_BODY,
        arguments=arguments.prefixes,
    ),
    Route("DELETE", "/prefixes/{name}", "Delete a prefix list that no farm uses.", "prefixes.delete", change=True),
    Route(
        "GET",
        "/config",
        "The configuration as a document, or as a farms file (TOML).",
        "config.export",
        own="config.export",
        query=(Parameter("format", str, "json, or toml; also by Accept: application/toml"),),
        versioned=True,
    ),
    Route(
        "PUT",
        "/config",
        "Make the configuration equal to a document; what it does not name is removed.",
        "config.apply",
        body="Applied",
        change=True,
        limit=BIG_BODY,
        arguments=arguments.applied,
    ),
    Route(
        "POST",
        "/config/diff",
        "What applying a document would change.",
        "config.diff",
        body="Document",
        limit=BIG_BODY,
        arguments=arguments.document,
    ),
    Route(
        "POST",
        "/config/removals",
        "What applying a document would remove.",
        "config.removals",
        body="Document",
        limit=BIG_BODY,
        arguments=arguments.document,
    ),
    Route(
        "POST",
        "/config/impact",
        "What a change would do to the connections.",
        "config.impact",
        body="Impact",
        limit=BIG_BODY,
        arguments=arguments.impact,
    ),
    Route("GET", "/history", "The last generations of the configuration.", "config.history"),
    Route(
        "GET",
        "/history/{generation}",
        "One generation: its changes and its document.",
        "config.generation",
        result=results.generation,
    ),
    Route(
        "POST",
        "/history/{generation}/rollback",
        "Put a generation in force again.",
        "config.rollback",
        body="Rollback",
        change=True,
    ),
    Route(
        "POST",
        "/import/{kind}",
        "A farms file made of the configuration of another load balancer; nothing is changed.",
        own="import",
        body="text",
        query=(
            Parameter("device", str, "interface of VIPs where the file names none"),
            Parameter("vip", str, "VIPs of services that listen on all addresses, separated by commas"),
        ),
        limit=BIG_BODY,
    ),
)
CONNECTIONS = (
    Route(
        "GET",
        "/connections",
        "The connections in the flow maps.",
        "conn.list",
        query=(OF_FARM, Parameter("limit", int, "at most so many", 1, 20000)),
        listed="connections",
    ),
    Route(
        "GET",
        "/connections/count",
        "How many connections there are.",
        "conn.count",
        query=(
            OF_FARM,
            Parameter("backend", str, "only of this backend, ADDRESS:PORT"),
            Parameter("current", bool, "without those that both ends have closed"),
        ),
    ),
    Route("GET", "/connections/show", "Where a connection goes, and why.", "conn.show", query=SHOW),
    Route("GET", "/connections/why", "Why a client cannot connect.", "conn.why", query=WHY),
    Route("POST", "/connections/flush", "End connections.", "conn.flush", body="Flush"),
)
NODE = (
    Route("GET", "/status", "The node: role, interfaces, faults, versions.", "status"),
    Route("GET", "/stats", "Counters, traffic of farms, sweep, loop lag.", "stats"),
    Route("GET", "/doctor", "Checks of the node, with remedies.", "doctor"),
    Route("GET", "/openapi.json", "This API as an OpenAPI document.", own="openapi", open=True),
    Route("GET", "/version", "Version of xlb-web and of this API.", own="version"),
    Route("GET", "/metrics", "Metrics for Prometheus, as OpenMetrics or text by Accept.", "metrics", own="metrics"),
    Route(
        "GET",
        "/rates",
        "Traffic per second, of the node, of farms, and with `farm` of its backends.",
        own="rates",
        query=(Parameter("farm", str, "also the backends of this farm"),),
    ),
    Route(
        "GET",
        "/series",
        "The last hour, of the node or of one farm.",
        own="series",
        query=(Parameter("farm", str, "of this farm"),),
    ),
    Route("GET", "/events", "Server-sent events.", own="events"),
    Route(
        "GET",
        "/events/recent",
        "The last events.",
        "watch",
        query=(Parameter("last", int, "so many", 1, 100),),
        result=results.recent,
    ),
)
CLUSTER = (
    Route("GET", "/cluster", "Both nodes, as each sees the pair.", "cluster.nodes"),
    Route("GET", "/cluster/status", "The pair, as this node sees it.", "cluster.status"),
    Route("GET", "/cluster/check", "Checks of the pair, with remedies.", "cluster.check"),
    Route(
        "GET",
        "/cluster/preview",
        "What joining a pair would remove here; with both addresses also whether they can form one.",
        "cluster.preview",
        query=(Parameter("local", str, "address of this node"), Parameter("peer", str, "address of the peer")),
    ),
    Route("POST", "/cluster/switchover", "Make the peer the active node.", "cluster.switchover"),
    Route("POST", "/cluster/failback", "Make the preferred node the active one.", "cluster.failback"),
    Route("POST", "/cluster/maintenance", "Take this node out of service, or back.", "cluster.maintenance", body="Maintenance"),
    Route(
        "POST", "/cluster/token", "Begin a pair: a token for the other node to join with.", "cluster.create", body="PairToken"
    ),
    Route("DELETE", "/cluster/token", "The token is not used: void it.", "cluster.cancel"),
    Route("POST", "/cluster/join", "Join the node that made the token.", "cluster.join", body="Join"),
    Route("DELETE", "/cluster", "End the pair.", "cluster.destroy"),
    Route("POST", "/cluster/create", "Begin to create a pair over SSH.", own="creation.start", body="Creation"),
    Route("GET", "/cluster/create", "The creation that runs or ran last: its steps, and its question.", own="creation.show"),
    Route("POST", "/cluster/create/answer", "Answer its question.", own="creation.answer", body="CreationAnswer"),
    Route("DELETE", "/cluster/create", "Cancel it, or forget one that has ended.", own="creation.cancel"),
)

ROUTES = (*SESSION, *ACCOUNTS, *VIPS, *FARMS, *CONFIGURATION, *CONNECTIONS, *NODE, *CLUSTER)
