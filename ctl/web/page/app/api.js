// Requests to /api/v1, the session they belong to, and the state of the way to xlbd. Nothing here makes elements.

const BASE = "/api/v1";

/** An answer that is an error, or no answer (status 0). */
export class ApiError extends Error {
  constructor(status, error, retryAfter = 0) {
    super(error.message);
    this.status = status;
    this.kind = error.kind ?? "";
    this.code = error.code ?? "";
    this.key = error.key ?? "";
    this.retryAfter = retryAfter;
  }

  /** Another change came first: what was to be changed is not what the person saw. */
  get overtaken() {
    return this.status === 412 || this.code === "change_overtaken";
  }
}

/** Events: `session` (somebody logged in or out), `reach` (server or xlbd answers or not), `note`. */
export const bus = new EventTarget();

export const emit = (type, detail) => bus.dispatchEvent(new CustomEvent(type, { detail }));

export const session = { name: "", role: "", csrf: "", expires_s: 0 };
export const isOperator = () => session.role === "operator";

/** What is known of the way: the server answers; xlbd answers; otherwise why not. */
export const reach = { server: true, daemon: true, why: "" };

let relogin = null; // asks for the password; set by main.js
let asking = null;

export function onExpired(ask) {
  relogin = ask;
}

export function setSession(answer) {
  Object.assign(session, { name: "", role: "", csrf: "", expires_s: 0 }, answer ?? {});
  emit("session", session);
}

function setReach(server, daemon, why) {
  if (reach.server === server && reach.daemon === daemon && reach.why === why) return;
  const restored = (server && !reach.server) || (daemon && !reach.daemon);
  Object.assign(reach, { server, daemon, why });
  emit("reach", { ...reach, restored });
}

const UNREACHED = new Set(["daemon_not_running", "daemon_silent"]);

async function ask(method, path, { body, type, headers, signal, accept } = {}) {
  const sent = { Accept: accept ?? "application/json", ...headers };
  if (method !== "GET") sent["X-CSRF-Token"] = session.csrf;
  if (body !== undefined) sent["Content-Type"] = type ?? "application/json";
  let answer;
  try {
    answer = await fetch(BASE + path, {
      method,
      headers: sent,
      body: body === undefined ? undefined : type ? body : JSON.stringify(body),
      signal,
      cache: "no-store",
      redirect: "error",
      credentials: "same-origin",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    setReach(false, reach.daemon, "");
    throw new ApiError(0, { message: "xlb-web does not answer: check the network, and on the node `systemctl status xlb-web`" });
  }
  const text = answer.status === 204 ? "" : await answer.text();
  let data = null;
  try {
    data = text === "" ? null : JSON.parse(text);
  } catch {
    data = answer.ok ? { result: text } : null;
  }
  if (!answer.ok) {
    const error = data?.error ?? { kind: "", code: "", message: `the server answered ${answer.status} ${answer.statusText}` };
    setReach(true, !UNREACHED.has(error.code), UNREACHED.has(error.code) ? error.message : "");
    throw new ApiError(answer.status, error, Number(answer.headers.get("Retry-After")) || 0);
  }
  setReach(true, path.startsWith("/session") ? reach.daemon : true, path.startsWith("/session") ? reach.why : "");
  if (data?.note) emit("note", data.note);
  return { result: data && "result" in data ? data.result : data, version: data?.version ?? unquoted(answer.headers.get("ETag")) };
}

const unquoted = (tag) => (tag ? tag.replace(/^W\//, "").replaceAll('"', "") : "");

/** An answer {result, version}. A session that has ended is renewed by the login dialog, then the request is repeated. */
export async function request(method, path, options = {}) {
  try {
    return await ask(method, path, options);
  } catch (error) {
    const ended = error.status === 401 && !path.startsWith("/session");
    if (!ended || !relogin) throw error;
    await expired();
    return ask(method, path, options);
  }
}

/** Open the login dialog once, however many requests found out. */
export function expired() {
  asking ??= relogin().finally(() => {
    asking = null;
  });
  return asking;
}

export const get = async (path, options) => (await request("GET", path, options)).result;
export const getVersioned = (path, options) => request("GET", path, options);

/** A change. version: "EPOCH-GENERATION" that the person saw; "*": any. */
export const change = async (method, path, body, version = "*") =>
  (await request(method, path, { body, headers: { "If-Match": version === "*" || !version ? "*" : `"${version}"` } })).result;

export const post = (path, body, version) => change("POST", path, body ?? {}, version);

export const part = encodeURIComponent;

/** ?a=1&b=2 of the values that are given. */
export function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
}
