// What the program counts: drops with their meaning and rates, then the rest.

import { get } from "../api.js";
import { h, put, setText } from "../dom.js";
import { bytes, count, perSecond, plural } from "../format.js";
import { table } from "../table.js";
import { badge, errorNotice, section, viewHead } from "../widgets.js";

const KINDS = [
  ["drop", "Dropped packets", "bad"],
  ["pass", "Left to the kernel", "off"],
  ["forward", "Forwarded", "ok"],
  ["event", "Other events", "info"],
];

export function dropsView(ctx) {
  let before = null;
  const problem = h("div");
  const all = h("input", { type: "checkbox", id: "drops-all", on: { change: () => before && draw() } });
  const total = h("span", { class: "quiet", role: "status" });
  let rows = [];
  const tables = KINDS.map(([kind, title, state]) => {
    const made = table({
      caption: title,
      key: (row) => row.name,
      empty: kind === "drop" ? "No packet was dropped." : "None.",
      columns: [
        { title: "Counter", head: true, class: "mono", text: (row) => row.name, sort: (row) => row.name },
        { title: "Meaning", class: "message", text: (row) => row.reason },
        { title: "Now", node: (row) => (row.rate > 0 ? badge(perSecond(row.rate), state) : "0/s"), sign: (row) => perSecond(row.rate), num: true, sort: (row) => row.rate ?? 0 },
        { title: "Packets", num: true, text: (row) => count(row.packets), sort: (row) => row.packets },
        { title: "Bytes", num: true, text: (row) => bytes(row.bytes), sort: (row) => row.bytes },
      ],
    });
    return { kind, title, made };
  });

  function draw() {
    for (const { kind, made } of tables) made.update(rows.filter((row) => row.kind === kind && (all.checked || row.packets > 0)));
    const drops = rows.filter((row) => row.kind === "drop");
    setText(total, `${plural(drops.reduce((sum, row) => sum + row.packets, 0), "packet")} dropped since xlbd began to count, ${perSecond(drops.reduce((sum, row) => sum + (row.rate ?? 0), 0))} now`);
  }

  ctx.every(2000, async () => {
    try {
      const now = await get("/stats", { signal: ctx.signal });
      const at = performance.now();
      const last = before ? new Map(before.counters.map((each) => [each.name, each.packets])) : null;
      const seconds = before ? (at - before.at) / 1000 : 0;
      rows = now.counters.map((each) => ({ ...each, rate: last?.has(each.name) ? Math.max(0, (each.packets - last.get(each.name)) / seconds) : null }));
      before = { counters: now.counters, at };
      put(problem);
      draw();
    } catch (error) {
      if (error.name !== "AbortError") put(problem, errorNotice(error));
      throw error;
    }
  });

  return {
    title: "Drops",
    element: h("div", { class: "view" }, viewHead("Drops"),
      h("div", { class: "toolbar" }, h("span", { class: "check" }, all, h("label", { for: "drops-all" }, "Show counters that are zero")), total),
      problem, tables.map(({ title, made }) => section(title, made.element))),
  };
}
