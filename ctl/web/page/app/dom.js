// The only module that makes elements. Strings become text nodes: nothing that a server, a peer or a person sent is parsed.

const SVG = "http://www.w3.org/2000/svg";
const IN_SVG = new Set(["svg", "path", "polyline", "line", "title"]);

/** An element. props: attributes; `on` has listeners; value, checked, disabled and hidden are properties. */
export function h(tag, props, ...children) {
  const node = IN_SVG.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [type, listener] of Object.entries(value)) node.addEventListener(type, listener);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "hidden") node[name] = value;
    else if (/^on|^style$|^srcdoc$/.test(name)) throw new Error(`attribute ${name}`);
    else if (name === "href" && !/^[#/]/.test(String(value))) throw new Error("a link leads nowhere else");
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...nodes(children));
  return node;
}

/** What append() takes: nested lists are flattened, null and false left out. */
export function nodes(children) {
  return children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false);
}

/** Replace what a node has. */
export function put(node, ...children) {
  node.replaceChildren(...nodes(children));
  return node;
}

/** Change a node's text only if it differs: selections and screen readers stay undisturbed. */
export function setText(node, text) {
  const wanted = String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
  return node;
}

let last = 0;

/** An id that no other element has. */
export function uid(prefix) {
  last += 1;
  return `${prefix}-${last}`;
}
