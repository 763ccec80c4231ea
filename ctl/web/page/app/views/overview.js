// Both nodes' health at a glance, total rates, what is not well.

import { get } from "../api.js";
import { h, put } from "../dom.js";
import { bits, count, duration, moment, perSecond, percent } from "../format.js";
import { state, wantRates } from "../live.js";
import { badge, errorNotice, facts, findingList, roleBadge, section, severityBadge, tile, viewHead } from "../widgets.js";

const HEALTH = { ok: "ok", warn: "warn", fail: "bad", silent: "bad", unknown: "off" };

export function overviewView(ctx) {
  const tiles = {
    packets: tile("Packets"),
    bytes: tile("Traffic"),
    new_connections: tile("New connections"),
    connections: tile("Connections"),
    drops: tile("Drops"),
  };
  const line = h("p", { class: "verdict" });
  const nodes = h("div", { class: "node-cards" });
  const findings = h("div", null, h("p", { class: "quiet" }, "Loading …"));
  const farms = h("div", null, h("p", { class: "quiet" }, "Loading …"));
  const events = h("ul", { class: "event-lines" });

  function rates(all) {
    const node = all?.node;
    if (!node) return;
    tiles.packets.set(perSecond(node.packets), "", node.packets);
    tiles.bytes.set(bits(node.bytes), "", node.bytes);
    tiles.new_connections.set(perSecond(node.new_connections), "", node.new_connections);
    tiles.connections.set(count(node.connections), "", node.connections);
    tiles.drops.set(perSecond(node.drops), "", node.drops);
  }

  async function status() {
    try {
      const answer = await get("/status", { signal: ctx.signal });
      const check = answer.check ?? { exit_code: 3, line: "" };
      const [word, ...rest] = check.line.split(": ");
      const kind = ["ok", "warn", "bad", "off"][check.exit_code] ?? "off";
      put(line, badge(word || "UNKNOWN", kind), " ", check.exit_code === 0 ? rest.join(": ") : `${answer.findings?.length ?? 0} to look at, see below`);
      put(nodes, (answer.nodes ?? []).map((row) => card(row, answer)));
      const bad = (answer.findings ?? []).filter((each) => each.status === "warn" || each.status === "fail");
      put(findings, findingList(bad, "Nothing: every check of this moment is well."));
    } catch (error) {
      if (error.name === "AbortError") return;
      put(findings, errorNotice(error));
    }
  }

  async function list() {
    const all = await get("/farms", { signal: ctx.signal });
    const down = all.filter((farm) => farm.enabled && farm.backends.some((each) => each.state === "down"));
    const up = all.reduce((sum, farm) => sum + farm.backends.filter((each) => each.state === "up").length, 0);
    const total = all.reduce((sum, farm) => sum + farm.backends.length, 0);
    put(farms,
      h("p", null, h("a", { href: "#/farms" }, `${count(all.length)} ${all.length === 1 ? "farm" : "farms"}`), `, ${up} of ${total} backends up`),
      down.length
        ? h("ul", { class: "plain" }, down.slice(0, 8).map((farm) => {
            const gone = farm.backends.filter((each) => each.state === "down");
            return h("li", null, badge(gone.length === farm.backends.length ? "down" : "degraded", gone.length === farm.backends.length ? "bad" : "warn"), " ", h("a", { href: `#/farms/${encodeURIComponent(farm.name)}` }, farm.name), `: ${gone.length} of ${farm.backends.length} backends down`);
          }), down.length > 8 ? h("li", null, h("a", { href: "#/farms" }, `and ${down.length - 8} more`)) : null)
        : null);
  }

  function card(row, answer) {
    const own = row.name === answer.node;
    return h("article", { class: "card node" },
      h("div", { class: "node-head" }, h("h3", null, row.name), roleBadge(row.role), own ? h("span", { class: "quiet" }, "this node") : null),
      row.why ? h("p", { class: "why" }, row.why) : null,
      facts([
        ["Health", badge(row.health, HEALTH[row.health] ?? "off")],
        ["In this role", typeof row.since_s === "number" ? duration(row.since_s) : "–"],
        ["In step", badge(row.in_step ? "yes" : "no", row.in_step ? "ok" : "warn")],
        ["Backends up", row.backends ? `${row.backends.up} of ${row.backends.total}` : "–"],
        own && answer.flows ? ["Flow map", `${percent((answer.flows.connections ?? 0) / (answer.flows.max || 1))} of ${count(answer.flows.max)}`] : null,
        ["Epoch, generation", `${row.epoch ?? "–"}, ${row.generation ?? "–"}`],
        ["Version", row.version || "–"],
      ]));
  }

  function recent(all) {
    put(events, all.slice(0, 6).map((event) => h("li", null, h("time", { datetime: event.time }, moment(event.time)), severityBadge(event.severity), h("span", { class: "message" }, event.message))));
    if (all.length === 0) put(events, h("li", { class: "quiet" }, "No events yet."));
  }

  ctx.leave(wantRates());
  ctx.on("rates", rates);
  ctx.on("events", recent);
  const again = ctx.every(4000, status);
  ctx.every(8000, list);
  ctx.on("event", again);
  rates(state.rates);
  recent(state.events);

  return {
    title: "Overview",
    element: h("div", { class: "view" }, viewHead("Overview"), line,
      h("div", { class: "tiles" }, Object.values(tiles).map((each) => each.element)),
      section("Nodes", nodes), section("What needs attention", findings),
      h("div", { class: "columns" }, section("Farms", farms), section("Last events", events, h("p", null, h("a", { href: "#/events" }, "All events"))))),
  };
}
