// The settings of VIPs, farms and backends as fields: name as in the API, words for people. A test compares the names with xlbd's.

import { field } from "./forms.js";

const choice = (name, label, choices, help) => ({ name, label, kind: "choice", choices, help });
const limit = (name, label, help, unit) => ({ name, label, kind: "integer", default: 0, placeholder: "no limit", help, unit });
const seconds = (name, label, help, placeholder) => ({ name, label, kind: "integer", unit: "s", default: 0, placeholder, help });
const whole = (name, label, help, unit) => ({ name, label, kind: "integer", help, unit });

export const PROTOCOLS = [["tcp", "TCP"], ["udp", "UDP"]];

export const FARM_MAIN = [
  { name: "name", label: "Name", required: true, help: "Letters, digits, “.”, “_” and “-”; the first is a letter or a digit." },
  { name: "vip", label: "Virtual address", required: true, help: "One VIP, or several separated by commas." },
  { name: "port", label: "Port", required: true, help: "A port, a range (8000-8010), a list (80,443), or “all”." },
  choice("proto", "Protocol", PROTOCOLS),
  choice("mode", "Mode", [["snat", "snat: backends see a floating address"], ["dnat", "dnat: backends see the client, and route back through the node"], ["dsr", "dsr: backends answer the client directly (same network)"], ["ipip", "ipip: backends answer directly (tunnel)"]]),
  choice("scheduler", "Scheduler", [["maglev", "maglev: hash of the connection"], ["source", "source: hash of the client address"], ["roundrobin", "roundrobin: in turn"], ["leastconn", "leastconn: fewest connections for the weight"]]),
];

export const FARM_MORE = [
  { name: "snat_address", label: "Source address (snat)", help: "The VIP that backends see; empty: the VIP of the client. Several for more source ports, with commas." },
  choice("all_down", "All backends down", [["drop", "take no new connections"], ["all", "try every backend"]]),
  choice("on_no_backend", "No backend for a connection", [["reject", "refuse it (reset, ICMP)"], ["drop", "no answer"]]),
  seconds("idle_timeout_s", "Idle timeout", "Silence after which a connection expires.", "7440 (tcp), 300 (udp)"),
  seconds("opening_timeout_s", "Opening timeout", "The same until both ends have answered.", "240 (tcp), 120 (udp)"),
  seconds("closing_timeout_s", "Closing timeout", "The same after both ends have finished (tcp).", "240"),
  whole("tier_minimum", "Usable backends per priority", "With fewer, those of the next priority take connections as well."),
  seconds("slow_start_s", "Slow start", "Time in which the share of a backend that comes up grows to its weight.", "off"),
  choice("table_size", "Lookup table", [["0", "chosen when the farm is created"], ...[509, 1021, 2039, 4093, 8191, 16381, 32749, 65537].map((size) => [String(size), `${size} slots`])], "More slots are exact for more backends."),
  choice("on_backend_down", "Connections of a backend that is down", [["", "default of the protocol"], ["keep", "keep"], ["reset", "reset"], ["move", "move (udp)"]]),
  choice("on_backend_removed", "Connections of a removed backend", [["", "default of the protocol"], ["keep", "keep"], ["reset", "reset"], ["move", "move (udp)"]]),
  seconds("persistence_s", "Persistence", "Time for which the connections of a client prefix stay with a backend.", "off"),
  whole("persistence_prefix_v4", "Persistence prefix, IPv4"),
  whole("persistence_prefix_v6", "Persistence prefix, IPv6"),
  { name: "persistence_return", label: "A client returns to its backend that was down", kind: "check" },
  limit("max_connections", "Most connections", "More are refused."),
  limit("max_rate", "Most new connections per client", "Per second and client prefix; more are dropped.", "/s"),
  limit("max_half_open", "Most half-open connections per client", "Not established yet, per client prefix."),
  whole("rate_prefix_v4", "Client prefix, IPv4"),
  whole("rate_prefix_v6", "Client prefix, IPv6"),
  { name: "allow", label: "Allowed clients", help: "Name of a prefix list; empty: everybody." },
  { name: "deny", label: "Denied clients", help: "Name of a prefix list; empty: none." },
  { name: "toa", label: "The client's address in a TCP option (snat, tcp)", kind: "check" },
  { name: "quic_cid", label: "QUIC connection id (udp)", help: "“prefix:N” or “server-id:OFFSET:LENGTH”." },
];

export const CHECK_KINDS = [["tcp", "tcp: connect"], ["http", "http: GET"], ["https", "https: GET with TLS"], ["icmp", "icmp: echo"], ["udp", "udp: datagram"], ["dns", "dns: query"], ["grpc", "grpc: health service"], ["command", "command: program on the node"], ["none", "none"]];

/** of: the kinds of check that have the setting. */
export const CHECK = [
  { name: "interval_ms", label: "Interval", kind: "integer", unit: "ms", of: "*" },
  { name: "timeout_ms", label: "Timeout", kind: "integer", unit: "ms", of: "*" },
  { name: "rise", label: "Successes until up", kind: "integer", of: "*" },
  { name: "fall", label: "Failures until down", kind: "integer", of: "*" },
  { name: "interval_down_ms", label: "Interval while down", kind: "integer", unit: "ms", default: 0, placeholder: "as the interval", of: "*" },
  { name: "port", label: "Port of the check", kind: "integer", default: 0, placeholder: "the backend's", of: "tcp http https udp dns grpc command" },
  { name: "address", label: "Address of the check", help: "Empty: the backend's.", of: "tcp http https icmp udp dns grpc" },
  { name: "path", label: "Path", of: "http https" },
  { name: "status", label: "Expected status", help: "A status or a range: 200-399.", of: "http https" },
  { name: "host", label: "Host header", help: "Empty: the backend's address.", of: "http https" },
  { name: "text", label: "Text in the body", of: "http https" },
  { name: "sni", label: "TLS server name", of: "https" },
  { name: "verify", label: "Check the certificate", kind: "check", of: "https" },
  { name: "ca_file", label: "Trusted authorities", help: "Absolute path of a file on each node; empty: the system's.", of: "https" },
  choiceOf("via", "Connect to", [["backend", "the backend's address"], ["vip", "the VIP on the backend (dsr, ipip)"]], "tcp"),
  { name: "payload", label: "Datagram", help: "Text, or “hex:” with hexadecimal digits.", of: "udp" },
  { name: "query", label: "Name", of: "dns" },
  choiceOf("query_type", "Record type", ["A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"].map((each) => [each, each]), "dns"),
  choiceOf("rcode", "Response code", ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"].map((each) => [each, each]), "dns"),
  { name: "answer", label: "Expected answer", of: "udp dns" },
  { name: "service", label: "Service", help: "Empty: the whole server.", of: "grpc" },
  { name: "command", label: "Program and arguments", kind: "lines", help: "One argument per line; the first is an absolute path.", of: "command" },
];

function choiceOf(name, label, choices, of) {
  return { ...choice(name, label, choices), of };
}

export const BACKEND = [
  { name: "address", label: "Address", required: true, help: "IPv4 or IPv6 address of the server." },
  { name: "port", label: "Port", kind: "integer", help: "Empty: the first port of the farm." },
  { name: "weight", label: "Weight", kind: "integer", help: "Share of new connections; 0: none." },
  { name: "priority", label: "Priority", kind: "integer", help: "Lowest number first; others wait as spares." },
  limit("max_connections", "Most connections", "More go to other backends."),
  { name: "quic_id", label: "QUIC server id", help: "In hexadecimal; with a farm's QUIC connection id." },
];

/** Settings of a backend that buttons change, not fields. */
export const BACKEND_BY_BUTTON = ["draining", "drain_until", "drain_then"];

export const VIP = [
  { name: "address", label: "Address", required: true, help: "With the prefix length of its network: 10.77.0.100/24." },
  { name: "device", label: "Interface", required: true, help: "The active node adds the address there." },
  { name: "guard", label: "Guard: answer only the ports of farms, and ICMP", kind: "check", value: true, wide: true },
];

/** Fields of specs with the values of `values`. */
export const make = (specs, values = {}) => specs.map((spec) => field({ ...spec, value: value(spec, values) }));

function value(spec, values) {
  const given = spec.name in values ? values[spec.name] : spec.value;
  return spec.kind === "choice" && given !== undefined ? String(given) : given;
}
