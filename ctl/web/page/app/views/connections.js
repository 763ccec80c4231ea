// Connections: which there are, why one goes where it goes, why a client cannot connect.

import { get, isOperator, post, query } from "../api.js";
import { h, put, setText } from "../dom.js";
import { field, form } from "../forms.js";
import { count, duration, plural } from "../format.js";
import { PROTOCOLS } from "../settings.js";
import { table } from "../table.js";
import { badge, busy, button, confirm, errorNotice, facts, findingList, section, toast, viewHead } from "../widgets.js";

const STATES = { established: "ok", opening: "info", embryonic: "info", closing: "off", unanswered: "warn" };
const LIMIT = 500;

export function connectionsView(ctx) {
  const farm = h("select", { id: "conn-farm", on: { change: () => load() } }, h("option", { value: "" }, "all farms"));
  const words = h("input", { type: "search", id: "conn-words", placeholder: "address, port or state", autocomplete: "off", on: { input: () => draw() } });
  const found = h("span", { class: "quiet", role: "status" });
  const problem = h("div");
  let all = { connections: [], total: 0 };
  const list = table({
    caption: "Connections",
    key: (row) => `${row.protocol} ${row.client} ${row.vip} ${row.direction}`,
    empty: "No connections.",
    columns: [
      { title: "Client", head: true, class: "mono", text: (row) => row.client, sort: (row) => row.client },
      { title: "VIP", class: "mono", text: (row) => `${row.vip} ${row.protocol}`, sort: (row) => row.vip },
      { title: "Farm", text: (row) => row.farm || "–", sort: (row) => row.farm },
      { title: "Backend", class: "mono", text: (row) => row.backend, sort: (row) => row.backend },
      { title: "Backend sees", class: "mono", text: (row) => row.backend_sees || "–" },
      { title: "State", node: (row) => badge(row.state, STATES[row.state] ?? "off"), sign: (row) => row.state, sort: (row) => row.state },
      { title: "Idle", num: true, text: (row) => (row.idle_s < 60 ? `${row.idle_s.toFixed(1)} s` : duration(row.idle_s)), sort: (row) => row.idle_s },
    ],
  });

  function draw() {
    const parts = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = all.connections.filter((row) => {
      const text = `${row.client} ${row.vip} ${row.backend} ${row.backend_sees} ${row.farm} ${row.state} ${row.protocol}`.toLowerCase();
      return parts.every((each) => text.includes(each));
    });
    list.update(shown);
    const cut = all.total > all.connections.length ? `, the first ${count(all.connections.length)} are shown` : "";
    setText(found, parts.length ? `${count(shown.length)} of ${plural(all.total, "connection")}${cut}` : `${plural(all.total, "connection")}${cut}`);
  }

  async function load() {
    try {
      all = await get(`/connections${query({ farm: farm.value, limit: LIMIT })}`, { signal: ctx.signal });
      put(problem);
      draw();
    } catch (error) {
      if (error.name !== "AbortError") put(problem, errorNotice(error));
      throw error;
    }
  }

  async function farms() {
    const names = (await get("/farms", { signal: ctx.signal })).map((each) => each.name);
    if (farm.options.length - 1 === names.length && names.every((name, at) => farm.options[at + 1].value === name)) return;
    const chosen = farm.value;
    put(farm, h("option", { value: "" }, "all farms"), names.map((name) => h("option", { value: name }, name)));
    farm.value = chosen;
  }

  async function flush() {
    const name = farm.value;
    const done = await confirm({
      title: name ? `Remove every connection of farm ${name}?` : "Remove every connection of all farms?",
      lines: [`${plural(all.total, "connection")} of the flow maps are removed. Clients have to connect again; most of their connections break.`],
      action: "Remove the connections", danger: true,
      work: () => post("/connections/flush", name ? { farm: name } : {}),
    });
    if (done) {
      toast("The connections are removed");
      load();
    }
  }

  const again = ctx.every(4000, load);
  ctx.every(30000, farms);
  const refresh = button("Refresh", () => busy(refresh, async () => again()));
  return {
    title: "Connections",
    element: h("div", { class: "view" }, viewHead("Connections"),
      h("div", { class: "columns" }, question("Why does this connection go there?", "Explain", whyThere, true), question("Why can this client not connect?", "Find out", whyNot, false)),
      section("Open connections",
        h("div", { class: "toolbar" }, h("label", { for: "conn-farm" }, "Farm"), farm, h("label", { for: "conn-words" }, "Filter"), words, refresh, isOperator() ? button("Remove connections", flush, { kind: "danger" }) : null, found),
        problem, list.element)),
  };
}

function question(title, action, answer, withPort) {
  const shown = h("div", { class: "answer", "aria-live": "polite" });
  const made = form({
    action,
    parts: [
      field({ name: "source", label: "Client address", required: true, placeholder: "198.51.100.7" }),
      field({ name: "source_port", label: "Client port", kind: "integer", required: withPort, default: "", placeholder: withPort ? "" : "any" }),
      field({ name: "destination", label: "VIP", required: true, placeholder: "10.77.0.100" }),
      field({ name: "destination_port", label: "Port", kind: "integer", required: true }),
      field({ name: "protocol", label: "Protocol", kind: "choice", choices: PROTOCOLS }),
    ],
    async submit(values) {
      put(shown);
      put(shown, await answer(values));
    },
  });
  return section(title, made.element, shown);
}

const numbered = (steps) => h("ol", { class: "why-steps" }, steps.map((step) => h("li", null, step)));

async function whyThere(values) {
  const found = await get(`/connections/show${query(values)}`);
  const forwarded = found.verdict === "forward";
  return [
    h("p", { class: "verdict" }, badge(forwarded ? "forwarded" : found.verdict, forwarded ? "ok" : "bad"), " ", found.exists ? "an open connection" : "a new connection"),
    facts([found.farm ? ["Farm", found.farm] : null, found.backend ? ["Backend", h("span", { class: "mono" }, found.backend)] : null, found.rewrite ? ["Rewrite", h("span", { class: "mono" }, found.rewrite)] : null, found.why ? ["Why", found.why] : null]),
    found.steps?.length ? numbered(found.steps) : null,
  ];
}

async function whyNot(values) {
  const found = await get(`/connections/why${query(values)}`);
  const word = found.connects === true ? "it can connect" : found.connects === false ? "it cannot connect" : "not known";
  return [
    h("p", { class: "verdict" }, badge(word, found.connects === true ? "ok" : found.connects === false ? "bad" : "warn"), found.node ? h("span", { class: "quiet" }, ` judged by ${found.node}`) : null),
    found.reason ? h("p", null, found.reason) : null,
    found.remedy ? h("p", { class: "remedy" }, h("span", { class: "remedy-word" }, "Remedy"), found.remedy) : null,
    h("details", null, h("summary", null, "What was looked at"), findingList(found.findings ?? [], "Nothing.")),
  ];
}
