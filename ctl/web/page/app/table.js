// Tables: rows keep their elements, so that numbers change in place; on a narrow screen they are cards.

import { h, put, setText, uid } from "./dom.js";

const FIRST_ROWS = 120;
const ROWS_AT_ONCE = 200;

/**
 * columns: {title, text(row) or node(row) with sign(row), num, head (row header), sort(row), narrow (card's label; "" hides it)}.
 * key(row): what a row is. Returns {element, update(rows)}.
 */
export function table({ caption, columns, key, empty, label = caption, cards = true, rowClass, className = "" }) {
  let rows = [];
  let order = null; // {at, down}
  let pending = 0;
  const known = new Map();
  const heads = columns.map((column, at) =>
    h("th", { scope: "col", role: "columnheader", class: column.num ? "num" : "" },
      column.sort ? h("button", { type: "button", class: "sort", on: { click: () => sort(at) } }, column.title) : column.title || h("span", { class: "unseen" }, column.unseen ?? "Actions")));
  const body = h("tbody", { role: "rowgroup" });
  const made = h("table", { role: "table", hidden: true, class: `${cards ? "cards" : ""} ${className}`.trim() },
    h("caption", { id: uid("caption"), class: "unseen" }, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads)), body);
  const none = h("p", { class: "quiet empty" }, "Loading …");
  const box = h("div", { class: "table-box", role: "region", "aria-label": label, tabindex: "0" }, made, none);

  function sort(at) {
    const numeric = columns[at].num;
    order = order?.at === at ? { at, down: !order.down } : { at, down: Boolean(numeric) };
    heads.forEach((head, n) => (n === at ? head.setAttribute("aria-sort", order.down ? "descending" : "ascending") : head.removeAttribute("aria-sort")));
    draw();
  }

  function cell(column, row) {
    const element = h(column.head ? "th" : "td", {
      role: column.head ? "rowheader" : "cell",
      scope: column.head ? "row" : undefined,
      class: [column.num ? "num" : "", column.class ?? ""].join(" ").trim() || undefined,
      "data-label": column.narrow ?? column.title,
    });
    fill(column, element, row, {});
    return element;
  }

  function fill(column, element, row, signs, at) {
    if (column.text) setText(element, column.text(row));
    else {
      const sign = column.sign ? column.sign(row) : JSON.stringify(row);
      if (signs[at] === sign && element.hasChildNodes()) return;
      signs[at] = sign;
      put(element, h("div", { class: "cell" }, column.node(row)));
    }
  }

  function line(row) {
    const id = key(row);
    let entry = known.get(id);
    if (!entry) {
      const cells = columns.map((column) => cell(column, row));
      entry = { tr: h("tr", { role: "row" }, cells), cells, signs: {}, fresh: true };
      columns.forEach((column, at) => {
        if (column.node) entry.signs[at] = column.sign ? column.sign(row) : JSON.stringify(row);
      });
      known.set(id, entry);
    } else columns.forEach((column, at) => fill(column, entry.cells[at], row, entry.signs, at));
    if (rowClass) entry.tr.className = rowClass(row);
    return entry.tr;
  }

  function draw() {
    cancelAnimationFrame(pending);
    const shown = order ? rows.toSorted(comparison(columns[order.at].sort, order.down)) : rows;
    const wanted = new Set(shown.map(key));
    for (const [id, entry] of known) {
      if (wanted.has(id)) continue;
      entry.tr.remove();
      known.delete(id);
    }
    setText(none, empty);
    none.hidden = shown.length > 0;
    made.hidden = shown.length === 0;
    let at = 0;
    const some = (limit) => {
      for (const end = Math.min(shown.length, at + limit); at < end; at += 1) {
        const tr = line(shown[at]);
        const there = body.children[at];
        if (there !== tr) body.insertBefore(tr, there ?? null);
      }
      if (at < shown.length) pending = requestAnimationFrame(() => some(ROWS_AT_ONCE));
    };
    some(FIRST_ROWS);
  }

  return {
    element: box,
    update(next) {
      rows = next;
      draw();
    },
    get count() {
      return rows.length;
    },
  };
}

function comparison(value, down) {
  const sign = down ? -1 : 1;
  return (a, b) => {
    const x = value(a);
    const y = value(b);
    return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
  };
}
