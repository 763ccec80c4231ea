// The last hour of this node.

import { get } from "../api.js";
import { graphs } from "../charts.js";
import { h, put } from "../dom.js";
import { bits, count, milliseconds, perSecond } from "../format.js";
import { errorNotice, viewHead } from "../widgets.js";

export function graphsView(ctx) {
  const problem = h("div");
  const drawn = graphs([
    { name: "packets", title: "Packets", format: perSecond },
    { name: "bytes", title: "Traffic", format: bits },
    { name: "new_connections", title: "New connections", format: perSecond },
    { name: "connections", title: "Connections", format: count, whole: true },
    { name: "drops", title: "Drops", format: perSecond, tint: "bad" },
    { name: "lag_ms", title: "Replication lag", format: milliseconds, tint: "warn" },
  ]);
  ctx.leave(drawn.close);
  ctx.every(10000, async () => {
    try {
      drawn.update(await get("/series", { signal: ctx.signal }));
      put(problem);
    } catch (error) {
      if (error.name !== "AbortError") put(problem, errorNotice(error));
      throw error;
    }
  });
  return {
    title: "Graphs",
    element: h("div", { class: "view" }, viewHead("Graphs"), h("p", { class: "quiet" }, "The last hour of this node, a value each 10 s. xlb-web keeps it in memory: it begins again with its restart."), problem, drawn.element),
  };
}
