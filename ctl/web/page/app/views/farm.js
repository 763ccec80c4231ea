// One farm: its settings, its backends with state and live rates, and the graphs of its last hour.

import { change, get, getVersioned, isOperator, part, post, query } from "../api.js";
import { graphs } from "../charts.js";
import { h, put } from "../dom.js";
import { confirmEffect, effectOf, effectView, formWithEffect } from "../effect.js";
import { field, folded, form } from "../forms.js";
import { bits, count, duration, endpoint, listener, moment, perSecond } from "../format.js";
import { wantRates } from "../live.js";
import * as settings from "../settings.js";
import { table } from "../table.js";
import { backendBadge, badge, busy, button, dialog, errorNotice, facts, farmState, section, tile, toast, viewHead } from "../widgets.js";

/** The fields of a health check: those of the chosen kind are shown. */
export function checkFields(health) {
  const kind = field({ name: "health_kind", label: "Health check", kind: "choice", choices: settings.CHECK_KINDS, value: health.kind, keys: ["health.kind"] });
  const specs = settings.CHECK.map((spec) => ({ ...spec, name: `health_${spec.name}`, keys: [`health.${spec.name}`] }));
  const values = Object.fromEntries(settings.CHECK.map((spec) => [`health_${spec.name}`, health[spec.name]]).filter(([, value]) => value !== undefined));
  const fields = settings.make(specs, values);
  const show = () => {
    for (const each of fields) {
      const of = each.spec.of;
      each.element.hidden = kind.get() === "none" || !(of === "*" || of.split(" ").includes(kind.get()));
    }
  };
  kind.input.addEventListener("change", show);
  show();
  return { parts: [kind, folded("Settings of the check", fields)] };
}

/** The health part of a change; null if nothing of it differs. Settings that the chosen kind does not have are left out. */
export function checkValues(values, changed) {
  const kind = values.health_kind;
  const given = {};
  for (const spec of settings.CHECK) {
    const name = `health_${spec.name}`;
    if (name in changed && changed[name] !== "" && (spec.of === "*" || spec.of.split(" ").includes(kind))) given[spec.name] = changed[name];
    else if (name in changed && changed[name] === "" && !spec.kind && spec.of.split(" ").includes(kind)) given[spec.name] = "";
  }
  if ("health_kind" in changed || Object.keys(given).length) return { kind, ...given };
  return null;
}

export function farmView(ctx, name) {
  let farm = null;
  let version = "";
  let rates = {};
  const path = `/farms/${part(name)}`;
  const state = h("p", { class: "verdict" });
  const problem = h("div");
  const about = h("div");
  const actions = h("div", { class: "actions" });
  const tiles = { packets: tile("Packets"), bytes: tile("Traffic"), new_connections: tile("New connections"), connections: tile("Connections"), drops: tile("Drops") };
  const rate = (backend, key) => rates[endpoint(backend.address, backend.port)]?.[key];
  const at = (backend) => endpoint(backend.address, backend.port);
  const list = table({
    caption: `Backends of farm ${name}`,
    key: at,
    empty: "No backends yet: this farm cannot take connections.",
    columns: [
      { title: "Backend", head: true, class: "mono", text: at, sort: at },
      { title: "State", class: "state-cell", node: (b) => [backendBadge(b.state), b.draining && b.drain_until ? ` until ${moment(b.drain_until)}` : null, h("span", { class: "line" }, checked(b))], sign: (b) => `${b.state} ${b.drain_until} ${checked(b)}`, sort: (b) => b.state },
      { title: "Weight", num: true, text: (b) => String(b.weight), sort: (b) => b.weight },
      { title: "Priority", num: true, text: (b) => String(b.priority), sort: (b) => b.priority },
      { title: "Connections", num: true, text: (b) => count(rate(b, "connections") ?? b.connections), sort: (b) => rate(b, "connections") ?? b.connections },
      { title: "New/s", num: true, text: (b) => perSecond(rate(b, "new_connections")), sort: (b) => rate(b, "new_connections") ?? 0 },
      { title: "Packets", num: true, text: (b) => perSecond(rate(b, "packets")), sort: (b) => rate(b, "packets") ?? 0 },
      { title: "Traffic", num: true, text: (b) => bits(rate(b, "bytes")), sort: (b) => rate(b, "bytes") ?? 0 },
      { title: "Opened", num: true, text: (b) => count(b.new_connections), sort: (b) => b.new_connections },
      ...(isOperator() ? [{ title: "", narrow: "", class: "buttons", sign: (b) => JSON.stringify([b.draining, b.weight, b.priority, b.max_connections, b.quic_id]), node: (b) => [
        button("Edit", () => editBackend(b), { kind: "small", label: `Edit backend ${at(b)}` }),
        b.draining ? button("Undrain", () => undrain(b), { kind: "small", label: `End the drain of backend ${at(b)}` }) : button("Drain", () => drain(b), { kind: "small", label: `Drain backend ${at(b)}` }),
        button("Remove", () => removeBackend(b), { kind: "small danger", label: `Remove backend ${at(b)}` }),
      ] }] : []),
    ],
  });
  const drawn = graphs([
    { name: "new_connections", title: "New connections", format: perSecond },
    { name: "connections", title: "Connections", format: count, whole: true },
    { name: "packets", title: "Packets", format: perSecond },
    { name: "bytes", title: "Traffic", format: bits },
    { name: "drops", title: "Drops", format: perSecond, tint: "bad" },
  ]);

  function draw() {
    const now = farmState(farm);
    put(state, badge(now.word, now.kind), ` ${now.up} of ${farm.backends.length} backends up`);
    const check = farm.health.kind === "none" ? badge("none", "off") : `${farm.health.kind}, every ${farm.health.interval_ms} ms, timeout ${farm.health.timeout_ms} ms, up after ${farm.health.rise}, down after ${farm.health.fall}`;
    const other = settings.FARM_MORE.filter((spec) => spec.name in farm && !isDefault(spec.name, farm[spec.name])).map((spec) => [spec.label, shownValue(spec, farm[spec.name])]);
    put(about, facts([
      ["Listens on", h("span", { class: "mono" }, `${listener(farm)} ${farm.proto}`)],
      ["Mode", farm.mode + (farm.mode === "snat" ? `, backends see ${(farm.snat_address || farm.vip).replaceAll(",", ", ")}` : "")],
      ["Scheduler", farm.scheduler],
      ["Health check", check],
      ["Timeouts", `idle ${farm.idle_timeout_s} s, opening ${farm.opening_timeout_s} s${farm.proto === "tcp" ? `, closing ${farm.closing_timeout_s} s` : ""}`],
      ...other,
    ]));
    list.update(farm.backends);
    if (isOperator()) {
      const sign = String(farm.enabled);
      if (actions.dataset.sign === sign) return;
      actions.dataset.sign = sign;
      put(actions, button("Edit", editFarm), farm.enabled ? button("Stop", stop) : button("Start", start), button("Delete", remove, { kind: "danger" }));
    }
  }

  async function load() {
    try {
      const answer = await getVersioned(path, { signal: ctx.signal });
      [farm, version] = [answer.result, answer.version];
      put(problem);
      draw();
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status === 404 || !farm) put(problem, errorNotice(error), h("p", null, h("a", { href: "#/farms" }, "All farms")));
      throw error;
    }
  }

  async function loadRates() {
    const answer = await get(`/rates${query({ farm: name })}`, { signal: ctx.signal });
    rates = answer.backends ?? {};
    if (rates[name] && typeof rates[name] === "object" && !("packets" in rates[name])) rates = rates[name];
    const own = answer.farms?.[name];
    if (own) {
      tiles.packets.set(perSecond(own.packets), "", own.packets);
      tiles.bytes.set(bits(own.bytes), "", own.bytes);
      tiles.new_connections.set(perSecond(own.new_connections), "", own.new_connections);
      tiles.connections.set(count(own.connections), "", own.connections);
      tiles.drops.set(perSecond(own.drops), "", own.drops);
    }
    if (farm) list.update(farm.backends);
  }

  async function reload() {
    await load();
    return { ...formValues(farm) };
  }

  async function nothing() {
    await load();
    return {};
  }

  async function editFarm() {
    const before = farm;
    const check = checkFields(before.health);
    const mains = settings.make(settings.FARM_MAIN.filter((spec) => spec.name !== "name"), { ...before, port: String(before.port) });
    const more = settings.make(settings.FARM_MORE, before);
    const wanted = (values, changed) => {
      const given = {};
      for (const spec of [...settings.FARM_MAIN, ...settings.FARM_MORE]) if (spec.name in changed) given[spec.name] = spec.name === "table_size" || (spec.name === "port" && /^\d+$/.test(changed.port)) ? Number(changed[spec.name]) : changed[spec.name];
      const health = checkValues(values, changed);
      if (health) given.health = health;
      return given;
    };
    const done = await formWithEffect({
      title: `Edit farm ${name}`,
      action: "Save",
      makeForm: (how) => form({ ...how, parts: [mains, check.parts, folded("More settings", more)], action: "Show the effect" }),
      request: (values, changed) => {
        const given = wanted(values, changed);
        return Object.keys(given).length ? { change: "farm.set", arguments_: { name, ...given } } : null;
      },
      version: () => version,
      reload,
      save: (values, changed, seen) => change("PATCH", path, wanted(values, changed), seen),
    });
    if (done) {
      toast(`Farm ${name} is changed`);
      load();
    }
  }

  async function act(options) {
    const done = await confirmEffect(options);
    if (done) await load().catch(() => {});
    return done;
  }

  const stop = () => act({ title: `Stop farm ${name}?`, lines: ["It takes no new connections; existing ones continue, and the settings remain."], action: "Stop the farm", change: "farm.stop", arguments_: { name }, version: () => version, save: (seen) => post(`${path}/stop`, {}, seen) });
  const start = () => act({ title: `Start farm ${name}?`, lines: ["It takes new connections again."], action: "Start the farm", change: "farm.start", arguments_: { name }, version: () => version, save: (seen) => post(`${path}/start`, {}, seen) });
  const remove = async () => {
    const done = await confirmEffect({ title: `Delete farm ${name}?`, lines: ["The farm and its backends are removed; its connections end. Configuration > History can bring it back."], action: "Delete the farm", danger: true, change: "farm.delete", arguments_: { name }, version: () => version, save: (seen) => change("DELETE", path, undefined, seen) });
    if (done) location.hash = "#/farms";
  };

  const of = (b) => ({ farm: name, address: b.address, port: b.port });

  async function addBackend() {
    const fields = settings.make(settings.BACKEND, { weight: 1, priority: 0 });
    const wanted = (values) => Object.fromEntries(Object.entries(values).filter(([key, value]) => value !== "" && !(key === "max_connections" && value === 0)));
    const done = await formWithEffect({
      title: `Add a backend to farm ${name}`,
      action: "Add the backend",
      makeForm: (how) => form({ ...how, parts: fields, action: "Show the effect" }),
      request: (values) => ({ change: "backend.add", arguments_: { farm: name, ...wanted(values) } }),
      version: () => version,
      reload: nothing,
      save: (values, _, seen) => post(`${path}/backends`, wanted(values), seen),
    });
    if (done) load();
  }

  async function editBackend(b) {
    const key = at(b);
    const own = settings.BACKEND.filter((spec) => spec.name !== "address" && spec.name !== "port");
    const fields = settings.make(own, b);
    const done = await formWithEffect({
      title: `Edit backend ${key}`,
      action: "Save",
      makeForm: (how) => form({ ...how, parts: fields, action: "Show the effect" }),
      reload: async () => {
        await load();
        const now = farm.backends.find((each) => at(each) === key);
        if (!now) throw new Error(`backend ${key} is gone`);
        return Object.fromEntries(own.map((spec) => [spec.name, now[spec.name]]));
      },
      request: (_, changed) => (Object.keys(changed).length ? { change: "backend.set", arguments_: { ...of(b), ...changed } } : null),
      version: () => version,
      save: (_, changed, seen) => change("PATCH", `${path}/backends/${part(key)}`, changed, seen),
    });
    if (done) load();
  }

  async function drain(b) {
    const fields = [
      field({ name: "deadline", label: "Deadline", kind: "integer", unit: "s", placeholder: "none", help: "Seconds from now; empty: until the last connection ends." }),
      field({ name: "drain_then", label: "At the deadline", kind: "choice", choices: [["keep", "keep what is left"], ["cut", "cut what is left"]] }),
    ];
    const wanted = (values) => (values.deadline === "" ? {} : { deadline: values.deadline, drain_then: values.drain_then });
    const done = await formWithEffect({
      title: `Drain backend ${at(b)}`,
      action: "Drain",
      makeForm: (how) => form({ ...how, parts: fields, action: "Show the effect" }),
      request: (values) => ({ change: "backend.drain", arguments_: { ...of(b), ...wanted(values) } }),
      version: () => version,
      reload: nothing,
      save: (values, _, seen) => post(`${path}/backends/${part(at(b))}/drain`, wanted(values), seen),
    });
    if (done) load();
  }

  const undrain = (b) => act({ title: `End the drain of ${at(b)}?`, lines: ["It takes new connections again."], action: "End the drain", change: "backend.set", arguments_: { ...of(b), draining: false }, version: () => version, save: (seen) => change("PATCH", `${path}/backends/${part(at(b))}`, { draining: false }, seen) });

  async function removeBackend(b) {
    const seen = version;
    const made = dialog({ title: `Remove backend ${at(b)}?`, wide: true, content: h("p", { class: "quiet" }, "Computing the effect …") });
    const effect = h("div");
    const failed = h("div");
    const now = field({ name: "now", label: "At once: its connections end now", kind: "check", help: "Otherwise they end, move or continue as the farm sets it for removed backends." });
    const yes = button("Remove", () => busy(yes, async () => {
      try {
        await change("DELETE", `${path}/backends/${part(at(b))}${now.get() ? "?now=1" : ""}`, undefined, seen);
        made.close(true);
      } catch (error) {
        put(failed, errorNotice(error));
      }
    }), { kind: "danger" });
    const compute = async () => {
      try {
        put(effect, effectView(await effectOf({ change: "backend.remove", arguments: { ...of(b), ...(now.get() ? { now: true } : {}) } })));
      } catch (error) {
        put(effect, errorNotice(error));
      }
    };
    now.input.addEventListener("change", compute);
    await compute();
    made.put(effect, now.element, failed, h("div", { class: "actions" }, yes, button("Cancel", () => made.close(false))));
    yes.focus();
    if (await made.closed) load();
  }

  ctx.leave(wantRates());
  ctx.leave(drawn.close);
  const again = ctx.every(5000, load);
  ctx.every(2000, loadRates);
  ctx.every(10000, async () => drawn.update(await get(`/series${query({ farm: name })}`, { signal: ctx.signal })));
  ctx.on("event", (event) => {
    if (event.fields?.farm === name || /^(config|role)\./.test(event.event)) again();
  });

  return {
    title: `Farm ${name}`,
    element: h("div", { class: "view" },
      h("p", { class: "crumbs" }, h("a", { href: "#/farms" }, "Farms")),
      viewHead(name, actions), state, problem,
      h("div", { class: "tiles" }, Object.values(tiles).map((each) => each.element)),
      section("Backends", list.element, isOperator() ? h("div", { class: "actions" }, button("Add a backend", addBackend, { kind: "primary" })) : null),
      section("Settings", about),
      section("Last hour", drawn.element)),
  };
}

/** What the last check found. */
function checked(b) {
  if (b.last_error && b.state !== "up") return `${b.last_error}${typeof b.last_error_s === "number" ? `, ${duration(b.last_error_s)} ago` : ""}`;
  return typeof b.state_for_s === "number" ? `for ${duration(b.state_for_s)}` : "not checked";
}

const DEFAULTS = { snat_address: "", all_down: "drop", on_no_backend: "reject", tier_minimum: 1, slow_start_s: 0, table_size: 0, on_backend_down: "", on_backend_removed: "", persistence_s: 0, persistence_prefix_v4: 32, persistence_prefix_v6: 128, persistence_return: true, max_connections: 0, max_rate: 0, max_half_open: 0, rate_prefix_v4: 32, rate_prefix_v6: 64, allow: "", deny: "", toa: false, quic_cid: "" };
const isDefault = (name, value) => /_timeout_s$|^snat_address$/.test(name) || value === DEFAULTS[name];

function shownValue(spec, value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (spec.kind === "choice") return spec.choices.find(([each]) => each === String(value))?.[1] ?? String(value);
  return spec.unit ? `${value} ${spec.unit}` : String(value);
}

/** The values of a farm as the fields of its form have them. */
function formValues(farm) {
  const values = {};
  for (const spec of [...settings.FARM_MAIN, ...settings.FARM_MORE]) if (spec.name in farm) values[spec.name] = spec.kind === "choice" || spec.name === "port" ? String(farm[spec.name]) : farm[spec.name];
  values.health_kind = farm.health.kind;
  for (const spec of settings.CHECK) if (spec.name in farm.health) values[`health_${spec.name}`] = spec.kind === "choice" ? String(farm.health[spec.name]) : farm.health[spec.name];
  return values;
}

