// The farms with their live rates, and the virtual addresses that they listen on.

import { change, get, getVersioned, isOperator, part, post } from "../api.js";
import { h, put, setText } from "../dom.js";
import { confirmEffect, formWithEffect } from "../effect.js";
import { field, folded, form } from "../forms.js";
import { bits, count, listener, perSecond, plural } from "../format.js";
import { state, wantRates } from "../live.js";
import * as settings from "../settings.js";
import { table } from "../table.js";
import { badge, button, errorNotice, farmState, section, toast, viewHead } from "../widgets.js";
import { checkFields, checkValues } from "./farm.js";
import { prefixesSection } from "./prefixes.js";

export function farmsView(ctx) {
  let all = [];
  let vips = [];
  let version = "";
  const found = h("span", { class: "quiet", role: "status" });
  const filter = h("input", { type: "search", id: "farm-filter", placeholder: "name, address, port, protocol or state", autocomplete: "off", on: { input: () => draw() } });
  const problem = h("div");
  const rate = (farm, name) => state.rates?.farms?.[farm.name]?.[name];
  const list = table({
    caption: "Farms",
    key: (farm) => farm.name,
    empty: "No farms yet. A farm is a service: a virtual address and port, balanced over backends.",
    columns: [
      { title: "Farm", head: true, class: "name", node: (farm) => h("a", { href: `#/farms/${part(farm.name)}` }, farm.name), sign: (farm) => farm.name, sort: (farm) => farm.name },
      { title: "State", node: (farm) => badge(farmState(farm).word, farmState(farm).kind), sign: (farm) => farmState(farm).word, sort: (farm) => farmState(farm).word },
      { title: "Listens on", class: "mono listens", text: (farm) => `${listener(farm)} ${farm.proto}`, sort: (farm) => listener(farm) },
      { title: "Up", num: true, narrow: "Backends up", text: (farm) => `${farmState(farm).up}/${farm.backends.length}`, sort: (farm) => farmState(farm).up },
      { title: "Connections", num: true, text: (farm) => count(rate(farm, "connections") ?? farm.connections), sort: (farm) => rate(farm, "connections") ?? farm.connections },
      { title: "New/s", num: true, text: (farm) => perSecond(rate(farm, "new_connections")), sort: (farm) => rate(farm, "new_connections") ?? 0 },
      { title: "Packets", num: true, text: (farm) => perSecond(rate(farm, "packets")), sort: (farm) => rate(farm, "packets") ?? 0 },
      { title: "Traffic", num: true, text: (farm) => bits(rate(farm, "bytes")), sort: (farm) => rate(farm, "bytes") ?? 0 },
      { title: "Drops", num: true, text: (farm) => perSecond(rate(farm, "drops")), sort: (farm) => rate(farm, "drops") ?? 0 },
    ],
  });
  const vipList = table({
    caption: "Virtual addresses",
    key: (vip) => vip.address,
    empty: "No virtual addresses yet: add one first, then farms that listen on it.",
    columns: [
      { title: "Address", head: true, class: "mono", text: (vip) => `${vip.address}/${vip.prefix_length}` },
      { title: "Interface", text: (vip) => vip.device },
      { title: "Guard", node: (vip) => (vip.guard ? badge("on", "ok") : badge("off", "warn")), sign: (vip) => String(vip.guard) },
      { title: "Farms", num: true, text: (vip) => count(all.filter((farm) => farm.vip.split(",").includes(vip.address)).length) },
      ...(isOperator() ? [{ title: "", narrow: "", class: "buttons", sign: (vip) => `${vip.address} ${vip.guard}`, node: (vip) => [
        button(vip.guard ? "Guard off" : "Guard on", () => toggleGuard(vip), { kind: "small", label: `${vip.guard ? "Guard off" : "Guard on"}: ${vip.address}` }),
        button("Delete", () => deleteVip(vip), { kind: "small danger", label: `Delete VIP ${vip.address}` }),
      ] }] : []),
    ],
  });

  function draw() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = words.length === 0 ? all : all.filter((farm) => {
      const text = `${farm.name} ${listener(farm)} ${farm.proto} ${farm.mode} ${farm.scheduler} ${farmState(farm).word} ${farm.backends.map((each) => each.address).join(" ")}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    list.update(shown);
    setText(found, words.length ? `${count(shown.length)} of ${plural(all.length, "farm")}` : plural(all.length, "farm"));
  }

  async function load() {
    try {
      const answer = await getVersioned("/farms", { signal: ctx.signal });
      [all, version] = [answer.result, answer.version];
      vips = await get("/vips", { signal: ctx.signal });
      put(problem);
      draw();
      vipList.update(vips);
    } catch (error) {
      if (error.name !== "AbortError" && all.length === 0) put(problem, errorNotice(error));
    }
  }

  async function interfaces() {
    try {
      return (await get("/status")).interfaces.map((each) => each.name);
    } catch {
      return [];
    }
  }

  async function addVip() {
    const names = await interfaces();
    const force = field({ name: "force", label: "Even if another machine answers for the address", kind: "check", wide: true });
    const made = await formWithEffect({
      title: "Add a virtual address",
      action: "Add",
      makeForm: (how) => form({
        ...how,
        parts: [settings.make(settings.VIP.map((spec) => (spec.name === "device" ? { ...spec, suggestions: names, value: names[0] } : spec))), force],
        action: "Show the effect",
      }),
      request: ({ force: _, ...values }) => ({ change: "vip.add", arguments_: values }),
      version: () => version,
      reload,
      save: ({ force: forced, ...values }, _, seen) => post("/vips", forced ? { ...values, force: true } : values, seen),
    });
    if (made) load();
  }

  async function deleteVip(vip) {
    const done = await confirmEffect({
      title: `Delete VIP ${vip.address}?`, action: "Delete", danger: true, change: "vip.delete", arguments_: { address: vip.address },
      version: () => version, save: (seen) => change("DELETE", `/vips/${part(vip.address)}`, undefined, seen),
    });
    if (done) load();
  }

  async function toggleGuard(vip) {
    const done = await confirmEffect({
      title: `Guard of ${vip.address} ${vip.guard ? "off" : "on"}?`, action: "Save", change: "vip.set", arguments_: { address: vip.address, guard: !vip.guard },
      lines: [vip.guard ? "Listeners of the node itself become reachable at this address." : "Only the ports of farms and ICMP are answered."],
      version: () => version, save: (seen) => change("PATCH", `/vips/${part(vip.address)}`, { guard: !vip.guard }, seen),
    });
    if (done) load();
  }

  async function reload() {
    await load();
    return {};
  }

  async function addFarm() {
    const check = checkFields({ kind: "tcp" });
    const more = settings.make(settings.FARM_MORE, { tier_minimum: 1, persistence_prefix_v4: 32, persistence_prefix_v6: 128, persistence_return: true, rate_prefix_v4: 32, rate_prefix_v6: 64 });
    const wanted = (values, changed) => {
      const given = {};
      for (const name of ["name", "vip", "port", "proto", "mode", "scheduler"]) given[name] = values[name];
      if (/^\d+$/.test(given.port)) given.port = Number(given.port);
      for (const { name } of settings.FARM_MORE) if (name in changed) given[name] = name === "table_size" ? Number(changed[name]) : changed[name];
      const health = checkValues(values, changed);
      if (health) given.health = health;
      return given;
    };
    const made = await formWithEffect({
      title: "Add a farm",
      action: "Add the farm",
      makeForm: (how) => form({
        ...how,
        parts: [
          settings.make(settings.FARM_MAIN.map((spec) => (spec.name === "vip" ? { ...spec, suggestions: vips.map((vip) => vip.address), value: vips.length === 1 ? vips[0].address : "" } : spec))),
          check.parts,
          folded("More settings", more),
        ],
        action: "Show the effect",
      }),
      request: (values, changed) => ({ change: "farm.add", arguments_: wanted(values, changed) }),
      version: () => version,
      reload,
      save: async (values, changed, seen) => {
        await post("/farms", wanted(values, changed), seen);
        toast(`Farm ${values.name} is added`);
        location.hash = `#/farms/${part(values.name)}`;
      },
    });
    if (made) load();
  }

  ctx.leave(wantRates());
  ctx.on("rates", draw);
  const again = ctx.every(10000, load);
  ctx.on("event", (event) => {
    if (/^(config|backend|farm|role)\./.test(event.event)) again();
  });

  return {
    title: "Farms",
    element: h("div", { class: "view" },
      viewHead("Farms", isOperator() ? button("Add a farm", addFarm, { kind: "primary" }) : null),
      h("div", { class: "toolbar" }, h("label", { for: "farm-filter" }, "Filter"), filter, found),
      problem, list.element,
      section("Virtual addresses", vipList.element, isOperator() ? h("div", { class: "actions" }, button("Add a virtual address", addVip)) : null),
      prefixesSection(ctx)),
  };
}

