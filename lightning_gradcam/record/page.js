"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const RUN_COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d1f", "#7f7f7f"];
const LONGER_SIDE = 160;
const [height, width] = data.size.map((side) => Math.max(8, Math.round((side * LONGER_SIDE) / Math.max(...data.size))));
const moments = data.moments.length;
const slices = data.slices.length; // of volumes and clips; 1 of images and signals

let order = data.runs.map((_, i) => i); // which run stands where; mixed when blind
let names = data.runs.map((run) => run.name);
let timer = null;
let saving = null;

function element(tag, options = {}, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const known = (value) => value !== null && value !== undefined;
const figure = (value) => (known(value) ? value.toFixed(2) : "–");
const now = () => Number($("time").value);
const slice = () => Number($("slice").value);

function momentName(t) {
  const moment = data.moments[t];
  if (data.by === "fraction") return `${Math.round(100 * moment)} % of the run`;
  return moment < 0 ? "before training" : `${data.by} ${moment}`;
}

// Maps: whole numbers from -127 to 127, and for each map what one of them stands for.

for (const run of data.runs) {
  const bytes = Uint8Array.from(atob(run.maps), (letter) => letter.charCodeAt(0));
  run.cells = new Int8Array(bytes.buffer);
  const largest = (sign) =>
    run.unit.map((row, t) => row.map((unit, i) => (known(unit) ? unit * cells(run, t, i).reduce((most, cell) => Math.max(most, sign * cell), 0) : 0)));
  run.largest = { 1: largest(1), "-1": largest(-1) };
}

/** The sides that are drawn: 1 for evidence for the target, -1 against it, where a run's maps have that side. */
function sides(run) {
  if ($("side").value === "for" || !run.signed) return [1];
  return $("side").value === "against" ? [-1] : [1, -1];
}

const strongest = (run, t, i) => Math.max(...sides(run).map((sign) => run.largest[sign][t][i]));

function cells(run, t, i) {
  const size = run.grid.reduce((product, side) => product * side);
  const start = (t * data.samples.length + i) * size;
  return run.cells.subarray(start, start + size);
}

function maximum(run, t, i) {
  const most = (one) => Math.max(...one.unit.map((_, at) => strongest(one, at, i)));
  if ($("scale").value === "map") return strongest(run, t, i);
  return $("scale").value === "sample" ? most(run) : Math.max(...data.runs.map(most));
}

/** One side of a map in the slice that is shown, at every cell; linear between the middles of a map's slices. */
function sideOf(run, t, i, sign) {
  const values = cells(run, t, i);
  const [depth, h, w] = [1, ...run.grid].slice(-3);
  const z = Math.min(depth - 1, Math.max(0, ((slice() + 0.5) * depth) / slices - 0.5));
  const above = Math.floor(z), below = Math.min(depth - 1, above + 1);
  const at = (layer, cell) => Math.max(0, sign * values[layer * h * w + cell]);
  return Float64Array.from({ length: h * w }, (_, cell) => at(above, cell) * (1 - z + above) + at(below, cell) * (z - above));
}

/** One side of a map, its values from 0 to 1 at every pixel, bilinear between the middles of its cells. */
function spread(run, t, i, sign) {
  const [h, w] = run.grid.slice(-2);
  const values = sideOf(run, t, i, sign);
  const scale = run.unit[t][i] / maximum(run, t, i);
  const result = new Float32Array(height * width);
  const at = (row, column) => values[row * w + column] * scale;
  for (let y = 0; y < height; y++) {
    const v = Math.min(h - 1, Math.max(0, ((y + 0.5) * h) / height - 0.5));
    const top = Math.floor(v), bottom = Math.min(h - 1, top + 1);
    for (let x = 0; x < width; x++) {
      const u = Math.min(w - 1, Math.max(0, ((x + 0.5) * w) / width - 0.5));
      const left = Math.floor(u), right = Math.min(w - 1, left + 1);
      const upper = at(top, left) * (1 - u + left) + at(top, right) * (u - left);
      const lower = at(bottom, left) * (1 - u + left) + at(bottom, right) * (u - left);
      result[y * width + x] = Math.min(1, upper * (1 - v + top) + lower * (v - top));
    }
  }
  return result;
}

const tables = Object.fromEntries(
  Object.entries(data.colors).map(([name, hex]) => [name, hex.match(/../g).map((two) => parseInt(two, 16))]),
);

function color(table, value, channel) {
  const position = value * (table.length / 3 - 1);
  const below = Math.min(table.length / 3 - 2, Math.floor(position));
  const [one, two] = [table[3 * below + channel], table[3 * below + 3 + channel]];
  return one + (two - one) * (position - below);
}

function paint(canvas, photo, run, t, i) {
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  const drawn = strongest(run, t, i) > 0;
  const table = tables[$("colors").value];
  const against = data.against[$("colors").value];
  const opacity = Number($("strength").value);
  const layers = drawn ? sides(run).map((sign) => [sign, spread(run, t, i, sign)]) : [];
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      let ink = photo[pixel];
      for (const [sign, values] of layers) {
        const paint = sign > 0 ? color(table, values[pixel], channel) : against[channel];
        ink += opacity * values[pixel] * (paint - ink);
      }
      picture.data[4 * pixel + channel] = ink;
    }
    picture.data[4 * pixel + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
  for (const boxes of run.regions) {
    const [x0, y0, x1, y1] = boxes[i].slice(4 * slice(), 4 * slice() + 4).map((edge, k) => (edge * (k % 2 ? height : width)) / run.size[k % 2 ? 0 : 1]);
    if (x1 <= x0 || y1 <= y0) continue;
    for (const [ink, line] of [["black", 3], ["white", 1]]) {
      context.strokeStyle = ink;
      context.lineWidth = line;
      context.strokeRect(x0 + 1.5, y0 + 1.5, x1 - x0 - 3, y1 - y0 - 3);
    }
  }
  if (!drawn) {
    context.font = "13px system-ui, sans-serif";
    context.textAlign = "center";
    context.lineWidth = 3;
    context.strokeStyle = "black";
    context.fillStyle = "white";
    const side = sides(run)[0] < 0 ? "nothing against" : "map empty";
    const note = known(run.unit[t][i]) ? side : "not finite";
    context.strokeText(note, width / 2, height / 2);
    context.fillText(note, width / 2, height / 2);
  }
}

/** The grey values of each slice of a photo, which lie one above the other. */
async function greyOf(address) {
  const picture = new Image();
  picture.src = address;
  await picture.decode();
  const context = element("canvas", { width, height: height * slices }).getContext("2d");
  const [across, down] = [picture.naturalWidth, picture.naturalHeight / slices];
  for (let place = 0; place < slices; place++) {
    context.drawImage(picture, 0, place * down, across, down, 0, place * height, width, height);
  }
  const grey = context.getImageData(0, 0, width, height * slices).data.filter((_, k) => k % 4 === 0);
  return data.slices.map((_, place) => grey.subarray(place * width * height, (place + 1) * width * height));
}

// Charts: a line a run over the moments, and the cursor that the slider moves.

const charts = [];

function makeChart(title, series) {
  const top = Math.max(1e-9, ...series.flat().filter(known));
  const high = top <= 1 ? (top > 0.5 ? 1 : top > 0.2 ? 0.5 : top > 0.1 ? 0.2 : 0.1) : top;
  const x = (t) => (moments > 1 ? (1000 * t) / (moments - 1) : 500);
  const y = (value) => 100 - (100 * value) / high;
  const picture = svg("svg", { viewBox: "-6 -6 1012 112", preserveAspectRatio: "none", role: "img" });
  picture.append(svg("line", { class: "axis", x1: 0, x2: 1000, y1: 100, y2: 100 }), svg("line", { class: "axis", x1: 0, x2: 1000, y1: 0, y2: 0 }));
  const lines = series.map((values) => {
    let path = "";
    values.forEach((value, t) => {
      if (known(value)) path += `${t > 0 && known(values[t - 1]) ? "L" : "M"}${x(t)} ${y(value)}h0`; // h0: a dot
    });
    const line = svg("path", { d: path });
    picture.append(line);
    return line;
  });
  const cursor = svg("line", { class: "now", y1: -4, y2: 104 });
  picture.append(cursor);
  picture.addEventListener("click", (event) => {
    const { left, width: across } = picture.getBoundingClientRect();
    moveTo(Math.round(((event.clientX - left) / across) * (moments - 1)));
  });
  const caption = element("figcaption");
  $("charts").append(element("figure", {}, caption, picture));
  charts.push({ title: `${title}, 0 to ${high.toPrecision(2)}`, series, lines, cursor, caption, picture, x });
}

makeChart("Drift since the moment before", data.runs.map((run) => run.drift_median));
for (const region of new Set(data.runs.flatMap((run) => Object.keys(run.mass)))) {
  makeChart(`Share of the map on ${region}`, data.runs.map((run) => run.mass[region] ?? Array(moments).fill(null)));
}

function drawCharts(t) {
  for (const chart of charts) {
    chart.caption.replaceChildren(element("strong", { textContent: chart.title }));
    order.forEach((run, place) => {
      const dot = element("span", { className: "dot" });
      dot.style.background = RUN_COLORS[place % RUN_COLORS.length];
      chart.caption.append(element("span", {}, dot, `${names[run]} ${figure(chart.series[run][t])}`));
      chart.lines[run].style.stroke = RUN_COLORS[place % RUN_COLORS.length];
      chart.picture.insertBefore(chart.lines[run], chart.cursor); // in the order of the places, also when blind
    });
    chart.cursor.setAttribute("x1", chart.x(t));
    chart.cursor.setAttribute("x2", chart.x(t));
    chart.picture.setAttribute("aria-label", `${chart.caption.textContent} at ${momentName(t)}`);
  }
}

// Cards: a sample each, with every run's map of it.

const cards = data.samples.map((sample, i) => {
  const head = element("p", { className: "head" }, element("span", { textContent: sample.title }), element("span"));
  const runs = element("div", { className: "runs" });
  const places = data.runs.map(() => {
    const canvas = element("canvas", { width, height });
    canvas.setAttribute("role", "img");
    const says = element("div");
    runs.append(element("div", {}, canvas, says));
    return { canvas, says };
  });
  return { i, item: element("li", {}, head, runs), differs: head.lastChild, places };
});

function agreement(t, i) {
  const values = data.runs.slice(1).map((run) => run.agreement[t][i]).filter(known);
  return values.length ? Math.min(...values) : null;
}

const driftOf = (t, i) => Math.max(-1, ...data.runs.map((run) => run.drift[t][i] ?? -1));

const FILTERS = { class: "label", group: "group" }; // a control, and what it asks of a sample

function shown(t, i) {
  const rights = data.runs.map((run) => run.right[t][i]);
  const verdict = $("verdict").value;
  return (
    Object.entries(FILTERS).every(([id, key]) => $(id).value === "" || data.samples[i][key] === $(id).value) &&
    (verdict !== "used" || data.samples[i].used) &&
    (verdict !== "right" || rights.every((right) => right === 1)) &&
    (verdict !== "wrong" || rights.some((right) => right === 0))
  );
}

const sorts = {
  order: (one, two) => one.i - two.i,
  difference: (one, two) => (agreement(now(), one.i) ?? 2) - (agreement(now(), two.i) ?? 2) || one.i - two.i,
  drift: (one, two) => driftOf(now(), two.i) - driftOf(now(), one.i) || one.i - two.i,
};

function arrange() {
  const sorted = [...cards].sort(sorts[$("sort").value]);
  sorted.forEach((card, place) => {
    if ($("cards").children[place] !== card.item) $("cards").insertBefore(card.item, $("cards").children[place] ?? null);
    card.item.hidden = !shown(now(), card.i);
  });
  $("none").hidden = sorted.some((card) => !card.item.hidden);
}

function drawCards(t) {
  for (const card of cards.filter((card) => !card.item.hidden)) {
    const agrees = agreement(t, card.i);
    card.differs.textContent = known(agrees) ? `agree ${figure(agrees)}` : "";
    card.places.forEach(({ canvas, says }, place) => {
      const run = data.runs[order[place]];
      paint(canvas, photos[card.i][slice()], run, t, card.i);
      const right = run.right[t][card.i];
      const dot = element("span", { className: "dot" });
      dot.style.background = RUN_COLORS[place % RUN_COLORS.length];
      const verdict = right === 1 ? " ✓" : right === 0 ? " ✗" : "";
      const said = run.predicted[t][card.i];
      says.className = `says ${right === 1 ? "right" : right === 0 ? "wrong" : ""}`;
      const prediction = element("span");
      const asked = run.asked[t][card.i];
      if (known(asked) && asked !== said) prediction.append(`for ${data.classes[asked] ?? asked}; `);
      if (known(said)) {
        const name = element("b", { textContent: `${data.classes[said] ?? said}${verdict}` });
        prediction.append(name, ` ${figure(run.confidence[t][card.i])}`);
      }
      says.replaceChildren(element("span", {}, dot, names[order[place]]), prediction);
      const what = [data.samples[card.i].title, names[order[place]], prediction.textContent, data.slices[slice()].toLowerCase(), momentName(t)];
      canvas.setAttribute("aria-label", `Map of ${what.filter(Boolean).join(", ")}`);
    });
  }
}

function draw() {
  const t = now();
  $("now").textContent = momentName(t);
  $("time").setAttribute("aria-valuetext", momentName(t));
  $("where").textContent = data.slices[slice()];
  $("slice").setAttribute("aria-valuetext", data.slices[slice()]);
  arrange();
  drawCharts(t);
  drawCards(t);
  keepState();
}

// State: what is not as it was at the start stands in the address, so that a link leads to what is seen.

const CONTROLS = ["colors", "side", "strength", "scale", "sort", "class", "group", "verdict", "slice"];
const defaults = {};

function stateInWords() {
  const state = new URLSearchParams();
  if (now() < moments - 1) state.set("at", data.moments[now()]); // at the last one, the page of a longer run goes on
  for (const id of CONTROLS) if ($(id).value !== defaults[id]) state.set(id, $(id).value);
  if ($("blind").checked) state.set("blind", order.join("."));
  return state.toString();
}

function keepState() {
  const state = stateInWords();
  if (state === document.body.dataset.state) return;
  document.body.dataset.state = state;
  clearTimeout(saving); // browsers refuse more than a hundred in half a minute
  const before = location.hash;
  saving = setTimeout(() => {
    if (location.hash !== before) return; // a link was followed, and is about to be read
    const address = location.href.split("#")[0] + (state && `#${state}`);
    try {
      history.replaceState(null, "", address);
    } catch {} // in a notebook's or dashboard's frame, which has no address of its own
  }, 400);
}

const isNumber = (text) => text.trim() !== "" && Number.isFinite(Number(text));

function accepts(control, value) {
  if (control.options) return [...control.options].some((option) => option.value === value);
  return isNumber(value) && Number(value) >= control.min && Number(value) <= control.max;
}

/** Take over the state in the address; what is not understood stays as it was at the start. */
function readState() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const id of CONTROLS) {
    const value = state.get(id);
    $(id).value = value !== null && accepts($(id), value) ? value : defaults[id];
  }
  const at = state.get("at") ?? "";
  const far = (t) => Math.abs(data.moments[t] - at); // of long runs not every moment is in the page
  $("time").value = isNumber(at) ? data.moments.reduce((best, _, t) => (far(t) < far(best) ? t : best), 0) : moments - 1;
  $("blind").checked = state.has("blind") && data.runs.length > 1;
  const places = (state.get("blind") ?? "").split(".").map(Number);
  const fits = places.length === data.runs.length && data.runs.every((_, run) => places.includes(run));
  setNames(fits ? places : null);
}

// Controls

function moveTo(t) {
  $("time").value = t;
  draw();
}

function moveAcross(place) {
  $("slice").value = place;
  draw();
}

function play(on) {
  clearTimeout(timer);
  timer = on ? setTimeout(next, 400) : null;
  $("play").textContent = on ? "Pause" : "Play";
}

function next() {
  if (now() < moments - 1) moveTo(now() + 1);
  play(now() < moments - 1);
}

function startOrStop() {
  if (timer === null && now() === moments - 1) moveTo(0);
  play(timer === null);
}

/** Name the runs; when blind by letters, in these places or in random ones. */
function setNames(places = null) {
  const blind = $("blind").checked;
  order = data.runs.map((_, i) => i);
  if (blind) {
    order = places ?? order.map((run) => [Math.random(), run]).sort((one, two) => one[0] - two[0]).map((pair) => pair[1]);
  }
  names = data.runs.map((run, i) => (blind ? String.fromCharCode(65 + order.indexOf(i)) : run.name));
  $("title").textContent = `Grad-CAM: ${order.map((run) => names[run]).join(" and ")}`;
  document.title = $("title").textContent;
  $("notes").hidden = blind;
}

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, button, summary") || event.ctrlKey || event.metaKey || event.altKey) return;
  const to = { ArrowLeft: now() - 1, ArrowRight: now() + 1, Home: 0, End: moments - 1 }[event.key];
  const across = { ArrowUp: slice() + 1, ArrowDown: slice() - 1 }[event.key];
  if (event.key === " ") startOrStop();
  else if (to !== undefined) moveTo(to);
  else if (across !== undefined && slices > 1) moveAcross(across);
  else return;
  event.preventDefault();
});

$("time").max = moments - 1;
$("time").value = moments - 1;
$("slice").max = slices - 1;
$("slice").value = Math.floor(slices / 2);
$("slice").parentElement.hidden = slices === 1;
$("slice").setAttribute("aria-label", data.slices[0].split(" ")[0]);
for (const id of ["time", "slice"]) $(id).addEventListener("input", draw);
$("play").addEventListener("click", startOrStop);
for (const id of ["colors", "side", "strength", "scale", "sort", "class", "group", "verdict"]) $(id).addEventListener("input", draw);
$("blind").addEventListener("input", () => { setNames(); draw(); });
for (const [id, key] of Object.entries(FILTERS)) {
  const names = [...new Set(data.samples.map((sample) => sample[key]))].filter(Boolean);
  $(id).append(...names.map((name) => element("option", { value: name, textContent: name })));
}
$("group").parentElement.hidden = $("group").options.length === 1;
if (data.runs.length === 1) {
  $("sort").querySelector("[value=difference]").remove();
  $("blind").parentElement.hidden = true;
}
$("side").parentElement.hidden = !data.runs.some((run) => run.signed);
for (const note of data.notes) $("notes").append(element("p", { textContent: note }));
document.body.style.setProperty("--runs", data.runs.length);
for (const id of CONTROLS) defaults[id] = $(id).value;
setNames();

let photos = [];
Promise.all(data.samples.map((sample) => greyOf(sample.photo))).then((found) => {
  photos = found;
  const follow = () => { readState(); draw(); };
  addEventListener("hashchange", follow);
  follow();
  document.body.dataset.ready = "yes";
  performance.mark("ready");
});
