// System > Cluster: of a single node the form that creates a pair; of a pair both nodes, each as it sees itself and the other.

import { change, get, isOperator, post } from "../api.js";
import { h, put } from "../dom.js";
import { ago, duration, milliseconds, moment, percent } from "../format.js";
import { state } from "../live.js";
import { badge, busy, button, confirm, errorNotice, findingList, notice, roleBadge, section, severityBadge, toast, viewHead } from "../widgets.js";
import { createPanel } from "./create.js";

export function clusterView(ctx) {
  const body = h("div", { class: "view" }, h("p", { class: "quiet" }, "Loading …"));
  let shape = "";
  let compare = null;
  let actions = null;
  const events = h("ul", { class: "event-lines" });

  function update(cluster) {
    const own = cluster?.nodes?.find((node) => node.own);
    if (!own?.status) {
      if (own && shape !== "none") {
        shape = "none";
        put(body, notice("bad", own.why_not || "This node does not answer."));
      }
      return;
    }
    const pair = own.status.role !== "single" && cluster.nodes.length > 1;
    const wanted = pair ? "pair" : "single";
    if (wanted !== shape) {
      if (wanted === "pair" && shape === "single" && ["running", "asking"].includes(state.job?.state)) return; // the form shows the last steps
      const created = shape === "single";
      shape = wanted;
      build(pair, created);
    }
    if (pair) {
      compare.update(cluster.nodes);
      actions?.update(cluster.nodes);
    }
  }

  function build(pair, created) {
    if (!pair) {
      put(body, createPanel(ctx, () => update(state.cluster)), section("Last events", events));
      return;
    }
    compare = comparison();
    actions = isOperator() ? operations(ctx) : null;
    const checks = h("div", null, h("p", { class: "quiet" }, "The checks compare both nodes: versions, clocks, links, MTU, VRRP, duplicate addresses."));
    const run = button("Run the checks", () => busy(run, async () => {
      try {
        const found = await get("/cluster/check", { signal: ctx.signal });
        showChecks(checks, found);
      } catch (error) {
        if (error.name !== "AbortError") put(checks, errorNotice(error));
      }
    }));
    const done = !created ? null : state.job?.state === "done" ? notice("info", `${state.job.node} and ${state.job.peer} are a pair.`) : state.job?.error ? errorNotice(state.job.error) : null;
    if (created && state.job?.state === "done" && state.job.checks?.length) showChecks(checks, state.job.checks);
    put(body, done, section("Both nodes", h("p", { class: "quiet" }, "Each column is what that node itself reports, and how it sees its peer."), compare.element),
      actions?.element ?? null, section("Checks", checks, h("div", { class: "actions" }, run)), section("Last events", events));
    done?.setAttribute("tabindex", "-1");
    done?.focus();
  }

  function recent(all) {
    put(events, all.slice(0, 100).map((event) => h("li", { "data-event": event.event }, h("time", { datetime: event.time }, moment(event.time)), severityBadge(event.severity), h("span", { class: "message" }, event.message))));
    if (all.length === 0) put(events, h("li", { class: "quiet" }, "No events yet."));
  }

  ctx.on("cluster", update);
  ctx.on("events", recent);
  ctx.on("job", (job) => (job?.state === "done" || job?.state === "failed") && update(state.cluster));
  recent(state.events);
  if (state.cluster) update(state.cluster);
  return { title: "Cluster", element: h("div", { class: "view" }, viewHead("Cluster"), body) };
}

export function showChecks(place, found) {
  const bad = found.filter((each) => each.status !== "ok");
  const good = found.filter((each) => each.status === "ok");
  put(place, findingList(bad, "Every check passed."),
    good.length ? h("details", null, h("summary", null, `${good.length} passed`), h("ul", { class: "plain" }, good.map((each) => h("li", null, badge("ok", "ok"), " ", h("strong", null, each.name), ` ${each.message}`)))) : null);
}

const yes = (value, other = "no", kind = "warn") => (value ? badge("yes", "ok") : badge(other, kind));

/** Rows of the comparison: name, and what a node's own status has. peer: the other node's name for itself and role. */
const ROWS = [
  ["Role", (s) => roleBadge(s.role)],
  ["Why", (s) => h("span", { class: "why" }, s.why || "–")],
  ["In this role", (s) => duration(s.since_s)],
  ["Epoch", (s) => String(s.epoch ?? "–")],
  ["Generation", (s) => String(s.generation ?? "–")],
  ["Lease left", (s) => (s.role === "active" ? milliseconds(s.lease_ms_left) : "none: it does not serve")],
  ["Sees its peer as", (s, other) => (s.peer ? seen(s.peer, other) : "–")],
  ["Peer last heard", (s) => (s.peer ? ago(s.peer.last_heard_ms) : "–")],
  ["Heartbeat paths", (s) => paths(s)],
  ["Peer in step", (s) => (s.sync ? yes(s.sync.in_step) : "–")],
  ["Protected share", (s) => (s.sync ? percent(s.sync.protected) : "–")],
  ["Replication lag", (s) => (s.sync ? milliseconds(s.sync.lag_ms) : "–")],
  ["Can serve", (s) => yes(s.can_serve, "no", "bad")],
  ["Hold-down", (s) => (s.hold_down_ms ? `${milliseconds(s.hold_down_ms)} left` : "none")],
  ["Gateway's vote", (s) => (s.vote ? (s.vote.can_be_asked ? `${s.vote.gateway} answers` : `none: ${s.vote.why}`) : "no gateway set")],
  ["Faults", (s) => (s.faults?.length ? h("ul", { class: "plain" }, s.faults.map((fault) => h("li", null, badge(typeof fault === "string" ? fault : fault.name ?? JSON.stringify(fault), "bad")))) : "none")],
];

function seen(peer, other) {
  const differs = other && other.role !== peer.role;
  return [roleBadge(peer.role), " ", peer.alive ? badge("alive", "ok") : badge("silent", "bad"), differs ? h("p", { class: "differs" }, `${other.node} itself reports ${other.role}`) : null];
}

function paths(s) {
  if (!s.paths) return "–";
  return h("ul", { class: "plain" }, Object.entries(s.paths).map(([name, alive]) =>
    h("li", null, `${name} `, alive ? badge("heard", "ok") : name === "data" && s.role === "active" ? badge("not expected", "off") : badge("silent", "bad"))));
}

function comparison() {
  const made = h("table", { class: "compare" });
  const box = h("div", { class: "table-box" }, made);
  let sign = "";
  return {
    element: box,
    update(nodes) {
      const now = JSON.stringify(nodes);
      if (now === sign) return;
      sign = now;
      const others = nodes.map((_, at) => nodes[1 - at]?.status ?? null);
      put(made,
        h("caption", { class: "unseen" }, "State of both nodes, each as it reports it"),
        h("thead", null, h("tr", null, h("th", { scope: "col" }, "What"), nodes.map((node) => h("th", { scope: "col" }, h("span", { class: "node-name" }, node.name || "peer"), node.own ? h("span", { class: "quiet" }, " this node") : null)))),
        h("tbody", null,
          nodes.some((node) => !node.answered) ? h("tr", null, h("th", { scope: "row" }, "Answers"), nodes.map((node) => h("td", null, node.answered ? badge("yes", "ok") : [badge("no", "bad"), h("p", null, node.why_not || "no answer")]))) : null,
          ROWS.map(([name, cell]) => h("tr", null, h("th", { scope: "row" }, name), nodes.map((node, at) => h("td", null, node.status ? cell(node.status, others[at]) : "–"))))));
    },
  };
}

function operations(ctx) {
  const place = h("div", { class: "actions" });
  let sign = "";

  function ask(title, lines, action, work, danger = false, content = null) {
    return async () => {
      if (await confirm({ title, lines, action, danger, content, work })) toast(`${title.replace(/\?$/, "")}: done`);
    };
  }

  function update(nodes) {
    const own = nodes.find((node) => node.own);
    const peer = nodes.find((node) => !node.own);
    const s = own.status;
    const active = [own, peer].find((node) => node.status?.role === "active");
    const backup = [own, peer].find((node) => node !== active) ?? peer;
    const inMaintenance = s.role === "maintenance";
    const now = JSON.stringify([own.name, peer.name, active?.name, inMaintenance, s.sync?.in_step, peer.answered]);
    if (now === sign) return;
    sign = now;
    const safe = s.sync?.in_step ? `Every connection continues: ${backup.name} has all of them.` : "The peer is not in step: xlbd refuses this until it is.";
    const force = h("input", { type: "checkbox", id: "force-maintenance" });
    put(place,
      button("Switch over", ask("Switch over?", [`${backup.name} becomes active and takes the VIPs; ${active?.name ?? "the active node"} becomes the backup.`, safe], "Switch over", () => post("/cluster/switchover")), { kind: "primary" }),
      inMaintenance
        ? button(`End maintenance of ${own.name}`, ask(`End maintenance of ${own.name}?`, [`${own.name} takes part again, as the backup; nothing changes for clients.`], "End maintenance", () => post("/cluster/maintenance", { on: false })))
        : button(`Maintenance of ${own.name}`, ask(`Put ${own.name} into maintenance?`, [
            s.role === "active" ? `${own.name} hands over to ${peer.name} first. ${safe}` : `${own.name} is the backup: nothing changes for clients.`,
            `Until the maintenance ends, ${own.name} takes nothing over: if ${peer.name} fails, no node serves the VIPs.`,
            "The setting survives a restart.",
          ], "Start maintenance", () => post("/cluster/maintenance", { on: true, force: force.checked }), false,
          h("p", { class: "check" }, force, h("label", { for: "force-maintenance" }, "Even if the peer cannot take over: no node serves the VIPs then")))),
      button("Fail back", ask("Fail back to the preferred node?", ["The node with the higher priority becomes active, if it is not.", safe], "Fail back", () => post("/cluster/failback"))),
      button("Destroy the pair", ask("Destroy the pair?", [
        `${active?.name ?? "The active node"} continues as a single node, with all VIPs and farms. Clients notice nothing.`,
        `${backup.name} becomes a single node without VIPs and farms. A backup copy of its farms is saved there (before-leave-….farms.toml).`,
        "No node takes over after that. System > Cluster creates a pair again.",
      ], "Destroy the pair", () => change("DELETE", "/cluster"), true), { kind: "danger" }));
  }

  return { element: section("Operate", place), update };
}
