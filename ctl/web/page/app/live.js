// What arrives by itself: the stream of events, the state of both nodes, live rates. One copy for all views.

import { emit, expired, get, reach } from "./api.js";

const KEPT = 300;
const STATE_MS = 2000;
const RETRY_MS = [500, 1000, 2000, 4000, 8000];

/** cluster: {nodes}; rates: as GET /rates; events: newest first; job: of "create a cluster". */
export const state = { cluster: null, rates: null, events: [], job: null, streaming: false };

const seen = new Set();
let stream = null;
let retries = 0;
let retry = 0;
let timer = 0;
let polling = false;
let again = false;
let pushed_ms = -Infinity;
let started = false;

export function start() {
  if (started) return;
  started = true;
  open();
  recent();
  poll();
}

export function stop() {
  started = false;
  clearTimeout(timer);
  shut();
  Object.assign(state, { cluster: null, rates: null, events: [], job: null, streaming: false });
  seen.clear();
}

// A hidden page needs nothing live: browsers have six connections to a server for all their tabs, and each stream takes one.
document.addEventListener("visibilitychange", () => {
  if (!started) return;
  if (document.hidden) shut();
  else {
    open();
    recent();
    poll();
  }
});

function shut() {
  clearTimeout(retry);
  stream?.close();
  stream = null;
  state.streaming = false;
  emit("stream", false);
}

function open() {
  shut();
  if (document.hidden) return;
  stream = new EventSource("/api/v1/events");
  stream.addEventListener("open", () => {
    const resumed = retries > 0;
    retries = 0;
    state.streaming = true;
    emit("stream", true);
    if (resumed) {
      recent();
      poll();
    }
  });
  stream.addEventListener("event", (message) => take(message, (event) => {
    if (!add(event)) return;
    emit("event", event);
    emit("events", state.events);
    poll();
  }));
  stream.addEventListener("rates", (message) => take(message, (rates) => {
    if (!rates || typeof rates.node !== "object") return;
    pushed_ms = performance.now();
    state.rates = rates;
    emit("rates", rates);
  }));
  stream.addEventListener("job", (message) => take(message, setJob));
  stream.addEventListener("lost", recent);
  stream.addEventListener("bye", () => failed());
  stream.addEventListener("error", failed);
}

function take(message, use) {
  let data;
  try {
    data = JSON.parse(message.data);
  } catch {
    return;
  }
  use(data);
}

async function failed() {
  if (!started || !stream) return;
  shut();
  const wait_ms = RETRY_MS[Math.min(retries, RETRY_MS.length - 1)];
  retries += 1;
  try {
    await get("/session");
  } catch (error) {
    if (error.status === 401 && started) await expired().catch(() => {});
  }
  clearTimeout(retry);
  if (started) retry = setTimeout(open, wait_ms);
}

/** The key of an event: numbers begin again with each life of xlbd. */
const key = (event) => `${event.node}|${event.number}|${event.time}|${event.event}`;

function add(event) {
  if (!event || typeof event !== "object" || event.event === "rates" || seen.has(key(event))) return false;
  seen.add(key(event));
  state.events.unshift(event);
  state.events.sort((a, b) => (a.time < b.time ? 1 : a.time > b.time ? -1 : b.number - a.number));
  for (const gone of state.events.splice(KEPT)) seen.delete(key(gone));
  return true;
}

async function recent() {
  try {
    const answer = await get("/events/recent?last=100");
    for (const event of Array.isArray(answer) ? answer : answer?.events ?? []) add(event);
    emit("events", state.events);
  } catch {
    // the banner names the reason
  }
}

export function setJob(job) {
  state.job = job ?? null;
  emit("job", state.job);
}

/** Ask for the state of both nodes now, and then every STATE_MS while somebody looks. */
export async function poll() {
  if (!started) return;
  if (polling) {
    again = true;
    return;
  }
  polling = true;
  again = false;
  clearTimeout(timer);
  try {
    const before = reach.daemon;
    state.cluster = await get("/cluster");
    emit("cluster", state.cluster);
    if (!before) recent();
    if (wanted > 0 && performance.now() - pushed_ms > 3000) {
      state.rates = await get("/rates");
      emit("rates", state.rates);
    }
  } catch {
    // the banner names the reason
  } finally {
    polling = false;
    if (started && !document.hidden) timer = setTimeout(poll, again ? 250 : STATE_MS);
  }
}

let wanted = 0;

/** While a view shows rates, they are asked for. Returns what ends that. */
export function wantRates() {
  wanted += 1;
  if (wanted === 1) poll();
  return () => {
    wanted -= 1;
  };
}

export const ownNode = () => state.cluster?.nodes?.find((node) => node.own) ?? null;
export const peerNode = () => state.cluster?.nodes?.find((node) => !node.own) ?? null;

