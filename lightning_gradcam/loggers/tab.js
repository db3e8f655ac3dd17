// The frame of the tab in TensorBoard: a bar with the runs, and below it the page of those that are ticked.

const POLL = 30_000; // ms, the rhythm of TensorBoard's own reload
const PATIENCE = 120_000; // ms, for a page
const MOST_TICKED = 4; // by default
const OURS = "p.lightning_gradcam."; // how components of TensorBoard's address begin that are a plugin's own

const STYLE = `
:root { color-scheme: light dark; --paper: light-dark(#fff, #303030); --ink: light-dark(#212121, #fff); --soft: light-dark(#616161, #bdbdbd); --line: light-dark(#e0e0e0, #616161); --accent: light-dark(#c75300, #ff9800); }
:root[data-theme=light] { color-scheme: light; }
:root[data-theme=dark] { color-scheme: dark; }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { display: flex; flex-direction: column; height: 100vh; margin: 0; background: var(--paper); color: var(--ink); font: 13px/1.4 Roboto, system-ui, sans-serif; }
header { position: relative; flex: none; max-height: min(6.5rem, 30vh); overflow: auto; padding: .35rem 1rem; border-bottom: 1px solid var(--line); }
.group, .unread { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; align-items: center; margin: 0; }
.group > span, .unread, #status { color: var(--soft); overflow-wrap: anywhere; }
.group + .group, .unread { margin-top: .2rem; padding-top: .2rem; border-top: 1px solid var(--line); }
#status { margin: 0; }
label { display: inline-flex; gap: .3rem; align-items: center; min-height: 1.6rem; overflow-wrap: anywhere; cursor: pointer; }
label span { color: var(--soft); white-space: nowrap; }
input { flex: none; width: 1rem; height: 1rem; margin: 0; accent-color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.spoken { position: absolute; width: 1px; height: 1px; margin: 0; overflow: hidden; clip-path: inset(50%); }
main { position: relative; flex: 1; min-height: 0; }
main p { margin: 1rem; color: var(--soft); }
iframe { position: absolute; inset: 0; width: 100%; height: 100%; border: 0; }
iframe.behind { visibility: hidden; }
`;

let runs = []; // as the server lists them
let chosen = null; // the names that the user has ticked; null: the newest
let state = ""; // of the page, as its own address has it
let shown = null; // the frame that is seen
let sought = ""; // what the newest frame is to show
let listed = ""; // what the bar shows
let saving = null;

function element(tag, options = {}, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}

const bar = element("div");
const status = element("p", { id: "status", hidden: true });
const empty = element("p", { textContent: "Loading …" });
const main = element("main", {}, empty);
status.setAttribute("role", "status");
empty.setAttribute("role", "status");

function say(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

async function until(holds, patience) {
  const end = Date.now() + patience;
  while (!holds() && Date.now() < end) await new Promise((done) => setTimeout(done, 50));
  return holds();
}

// The address of TensorBoard, in which the ticked runs and the state of the page are kept, so that it can be handed on.

const queryOf = (names) => new URLSearchParams([...names].map((name) => ["run", name])).toString();

function readAddress() {
  const parts = new URLSearchParams(parent.location.hash.slice(1));
  const names = new URLSearchParams(parts.get(`${OURS}runs`) ?? "").getAll("run");
  chosen = names.length ? new Set(names) : null;
  state = parts.get(`${OURS}page`) ?? "";
}

/** Follow a link that is opened in the same window. */
function onAddress() {
  if (saving !== null) return; // what is about to be written there is newer
  readAddress();
  drawBar();
  if (shown) handState(shown);
  showPage();
}

function keepAddress() {
  clearTimeout(saving); // browsers refuse more than a hundred in half a minute
  saving = setTimeout(() => {
    saving = null;
    const [address, hash = ""] = parent.location.href.split("#");
    const own = chosen || state ? { runs: queryOf(chosen ?? ticked().map((run) => run.name)), page: state } : {};
    const parts = hash.split("&").filter((part) => part && !part.startsWith(OURS));
    for (const [key, value] of Object.entries(own)) if (value) parts.push(`${OURS}${key}=${encodeURIComponent(value)}`);
    parent.history.replaceState(parent.history.state, "", `${address}#${parts.join("&")}`);
  }, 400);
}

// The bar

const isTicked = (run) => ticked().includes(run);

/**
 * The ticked runs, all of one group: by default the newest of the group that is shown, else of the newest group. Where the
 * reader has set something in the page, a run that has just started does not join: it has few moments, and would move the slider.
 */
function ticked() {
  const readable = runs.filter((run) => !run.error);
  const wanted = readable.filter((run) => chosen?.has(run.name));
  if (chosen) return wanted.filter((run) => run.group === wanted[0].group);
  const seen = readable.filter((run) => shown?.names.includes(run.name));
  if (state && seen.length) return seen;
  const group = seen[0]?.group ?? 0;
  return readable.filter((run) => run.group === group).slice(-MOST_TICKED);
}

function tick(run, on) {
  const others = ticked().filter((other) => other !== run && other.group === run.group);
  chosen = new Set((on ? [...others, run] : others).map((other) => other.name));
  keepAddress();
  drawBar();
  showPage();
}

function drawBar() {
  const gone = [...(chosen ?? [])].filter((name) => !runs.some((run) => run.name === name));
  say(status, gone.length ? `Not here, or not yet: ${gone.join(", ")}` : "");
  const content = JSON.stringify(runs.map((run) => [run, isTicked(run)]));
  if (content === listed) return;
  const first = listed === "";
  listed = content;
  const focused = document.activeElement?.value;
  const groups = new Map();
  for (const run of runs.filter((run) => !run.error)) {
    if (!groups.has(run.group)) groups.set(run.group, { why: run.differs, boxes: [] });
    const box = element("input", { type: "checkbox", value: run.name, checked: isTicked(run) });
    box.addEventListener("change", () => tick(run, box.checked));
    const count = element("span", { textContent: `${run.observations} obs.`, title: "observations" });
    groups.get(run.group).boxes.push(element("label", {}, box, run.name, count));
  }
  const made = [...groups].sort(([one], [two]) => one - two).map(([number, { why, boxes }]) => {
    const title = element("span", { id: `group${number}`, textContent: why || "Runs" });
    const group = element("div", { className: "group" }, title, ...boxes);
    group.setAttribute("role", "group");
    group.setAttribute("aria-labelledby", title.id);
    return group;
  });
  const unread = runs.filter((run) => run.error).map((run) => element("p", { className: "unread", textContent: `${run.name}: ${run.error}` }));
  bar.replaceChildren(...made, ...unread);
  const boxes = [...bar.querySelectorAll("input")];
  boxes.find((box) => box.value === focused)?.focus({ preventScroll: true });
  if (first) boxes.find((box) => box.checked)?.scrollIntoView({ block: "nearest" });
}

/** Bring a page to the state, without an entry in the browser's history. */
function handState(frame) {
  const { location } = frame.contentWindow; // its whole address, since what is not would be read as below ours
  location.replace(`${location.href.split("#")[0]}#${state}`);
}

// The page, in a frame; a newer one is made ready behind the one that is seen, and takes its place at once.

async function showPage() {
  const asked = ticked();
  const wanted = asked.length ? JSON.stringify(asked.map((run) => [run.name, run.state])) : "";
  if (wanted === sought && (shown || wanted)) return;
  sought = wanted;
  if (!asked.length) {
    for (const frame of main.querySelectorAll("iframe")) frame.remove();
    shown = null;
    say(empty, runs.some((run) => !run.error) ? "Tick a run to see where it looks." : "No run here has a record that can be read.");
    return;
  }
  const names = asked.map((run) => run.name);
  const next = element("iframe", { className: "behind", title: "Grad-CAM of the ticked runs", src: `page?${queryOf(names)}#${state}` });
  const loaded = state;
  main.append(next);
  const body = () => next.contentDocument?.body;
  const isReady = () => sought !== wanted || (body()?.dataset.ready === "yes" && !shown?.contentDocument?.querySelector("input:active"));
  const ready = await until(isReady, PATIENCE);
  if (ready && sought === wanted && state !== loaded) {
    handState(next);
    await until(() => body()?.dataset.state === state, 1000);
  }
  if (!ready || sought !== wanted) {
    next.remove();
    if (ready) return;
    sought = ""; // so that the next look asks for it again
    say(status, "The page of these runs did not come in two minutes.");
    return;
  }
  takePlace(next, names);
  if (body().dataset.failed) await look(); // by now it is known which run could not be read
}

function takePlace(next, names) {
  const { body, documentElement } = next.contentDocument;
  const before = shown?.contentDocument;
  const focused = document.activeElement === shown ? before?.activeElement?.id : null;
  const keep = () => {
    if (body.dataset.state === undefined || body.dataset.state === state) return;
    state = body.dataset.state;
    keepAddress();
  };
  new MutationObserver(keep).observe(body, { attributes: true, attributeFilter: ["data-state"] });
  setTheme();
  documentElement.scrollTop = before?.documentElement.scrollTop ?? 0;
  next.className = "";
  next.names = names;
  shown?.remove();
  shown = next;
  say(empty, "");
  if (focused !== null) (next.contentDocument.getElementById(focused) ?? next).focus({ preventScroll: true });
  if (before?.getElementById("play")?.textContent === "Pause") next.contentDocument.getElementById("play")?.click();
}

// What comes from outside

async function look() {
  try {
    const answer = await (await fetch("runs")).json();
    if (answer.error) {
      say(shown ? status : empty, answer.error);
      return;
    }
    runs = answer.runs;
  } catch {
    say(status, "TensorBoard does not answer.");
    return;
  }
  drawBar();
  await showPage();
}

const isSeen = () => innerHeight > 0 && !document.hidden; // another tab of TensorBoard's leaves us no height

function lookIfSeen() {
  if (isSeen()) look();
}

/** TensorBoard tells of a reload through a port that it takes from us; each message wants a reply. */
function onReload(call) {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = (event) => {
    const { type, id, isReply } = JSON.parse(event.data);
    if (isReply) return;
    port1.postMessage(JSON.stringify({ type, id, payload: null, error: null, isReply: true }));
    if (type === "experimental.DataReloaded") call();
  };
  parent.postMessage("experimental.bootstrap", location.origin, [port2]);
}

function setTheme() {
  const theme = parent.document.body.classList.contains("dark-mode") ? "dark" : "light";
  const pages = [...main.querySelectorAll("iframe")].map((frame) => frame.contentDocument);
  for (const one of [document, ...pages]) if (one) one.documentElement.dataset.theme = theme;
}

function onKey(event) {
  if (!["ArrowLeft", "ArrowRight"].includes(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
  shown?.contentDocument?.body.dispatchEvent(new KeyboardEvent("keydown", { key: event.key, bubbles: true }));
  event.preventDefault();
}

export async function render() {
  document.documentElement.lang = "en";
  document.title = "Grad-CAM";
  document.head.append(element("style", { textContent: STYLE }));
  document.body.append(element("header", {}, element("h1", { className: "spoken", textContent: "Grad-CAM" }), bar, status), main);
  new MutationObserver(setTheme).observe(parent.document.body, { attributes: true, attributeFilter: ["class"] });
  setTheme();
  readAddress();
  parent.addEventListener("hashchange", onAddress);
  onReload(lookIfSeen);
  setInterval(lookIfSeen, POLL);
  addEventListener("resize", lookIfSeen);
  document.addEventListener("visibilitychange", lookIfSeen);
  document.addEventListener("keydown", onKey);
  await look();
}
