// The checks of `xlbctl doctor`.

import { get } from "../api.js";
import { h, put } from "../dom.js";
import { plural } from "../format.js";
import { badge, busy, button, errorNotice, findingList, section, viewHead } from "../widgets.js";

export function doctorView(ctx) {
  const verdict = h("p", { class: "verdict" });
  const bad = h("div", null, h("p", { class: "quiet" }, "Running the checks …"));
  const good = h("div");

  async function load() {
    try {
      const found = await get("/doctor", { signal: ctx.signal });
      const wrong = found.filter((each) => each.status === "warn" || each.status === "fail");
      const fails = wrong.filter((each) => each.status === "fail").length;
      put(verdict, badge(fails ? "fail" : wrong.length ? "warn" : "ok", fails ? "bad" : wrong.length ? "warn" : "ok"), ` ${plural(wrong.length, "finding")} in ${plural(found.length, "check")}`);
      put(bad, findingList([...wrong].sort((a, b) => (a.status === "fail" ? 0 : 1) - (b.status === "fail" ? 0 : 1)), "Nothing: every check is well."));
      put(good, findingList(found.filter((each) => !wrong.includes(each)), "None."));
    } catch (error) {
      if (error.name !== "AbortError") put(bad, errorNotice(error));
    }
  }

  const again = button("Check again", () => busy(again, load));
  load();
  return {
    title: "Doctor",
    element: h("div", { class: "view" }, viewHead("Doctor", again), verdict, section("What needs attention", bad), section("What is well", good)),
  };
}
