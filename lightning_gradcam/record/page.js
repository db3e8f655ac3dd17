"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const RUN_COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d1f", "#7f7f7f"];
const LONGER_SIDE = 160;
const [height, width] = data.size.map((side) => Math.max(8, Math.round((side * LONGER_SIDE) / Math.max(...data.size))));
const moments = data.moments.length;
const slices = data.slices.length; // of volumes and clips; 1 of images and signals

let order = data.sides.map((_, i) => i); // which side stands where; mixed when blind
let names = data.sides.map((side) => side.name);
const runsASide = data.sides.map((side) => side.runs.length);
let timer = null;
let saving = null;
let mean = null; // of the photos, once they are decoded

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
const runOf = (side) => data.runs[side.runs[($("run").value - 1) % side.runs.length]]; // the one that is shown

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
function sideOf(values, grid, sign) {
  const [depth, h, w] = [1, ...grid].slice(-3);
  const z = Math.min(depth - 1, Math.max(0, ((slice() + 0.5) * depth) / slices - 0.5));
  const above = Math.floor(z), below = Math.min(depth - 1, above + 1);
  const at = (layer, cell) => Math.max(0, sign * values[layer * h * w + cell]);
  return Float64Array.from({ length: h * w }, (_, cell) => at(above, cell) * (1 - z + above) + at(below, cell) * (z - above));
}

/** One side of a map, its values from 0 to 1 at every pixel, bilinear between the middles of its cells. */
function spread(values, grid, scale) {
  const [h, w] = grid.slice(-2);
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

/** Lay the sides of a map, each with its values at every pixel, over a photo. */
function blend(context, photo, layers) {
  const picture = context.createImageData(width, height);
  const table = tables[$("colors").value];
  const against = data.against[$("colors").value];
  const opacity = Number($("strength").value);
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
}

function paint(canvas, photo, run, t, i) {
  const context = canvas.getContext("2d");
  const drawn = strongest(run, t, i) > 0;
  const scale = run.unit[t][i] / maximum(run, t, i);
  const layer = (sign) => [sign, spread(sideOf(cells(run, t, i), run.grid, sign), run.grid, scale)];
  blend(context, photo, drawn ? sides(run).map(layer) : []);
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
    const side = sides(run)[0] < 0 ? "nothing against" : "map empty";
    writeOver(context, known(run.unit[t][i]) ? side : "not finite");
  }
}

function writeOver(context, note) {
  context.font = "13px system-ui, sans-serif";
  context.textAlign = "center";
  context.lineWidth = 3;
  context.strokeStyle = "black";
  context.fillStyle = "white";
  context.strokeText(note, width / 2, height / 2);
  context.fillText(note, width / 2, height / 2);
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

// Cards: a sample each, with every run's map of it.

/** A card's row of canvases, one a side, each with room for words below. */
function rowOfCanvases() {
  const row = element("div", { className: "runs" });
  const places = data.sides.map(() => {
    const canvas = element("canvas", { width, height });
    canvas.setAttribute("role", "img");
    const says = element("div", { className: "says" });
    row.append(element("div", {}, canvas, says));
    return { canvas, says };
  });
  return { row, places };
}

/** A run's name behind the dot of its place. */
function dotted(place, run) {
  const dot = element("span", { className: "dot" });
  dot.style.background = RUN_COLORS[place % RUN_COLORS.length];
  return element("span", {}, dot, nameOf(place, run));
}

const nameOf = (place, run) => ($("blind").checked ? names[order[place]] : run.name);

const cards = data.samples.map((sample, i) => {
  const head = element("p", { className: "head" }, element("span", { textContent: sample.title }), element("span"));
  const { row, places } = rowOfCanvases();
  return { i, item: element("li", { className: "card" }, head, row), differs: head.lastChild, places };
});

function agreement(t, i) {
  const values = data.sides.slice(1).map((side) => runOf(side).agreement[t][i]).filter(known);
  return values.length ? Math.min(...values) : null;
}

const driftOf = (t, i) => Math.max(-1, ...data.sides.map((side) => runOf(side).drift[t][i] ?? -1));

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
      const run = runOf(data.sides[order[place]]);
      paint(canvas, photos[card.i][slice()], run, t, card.i);
      const right = run.right[t][card.i];
      const verdict = right === 1 ? " ✓" : right === 0 ? " ✗" : "";
      const said = run.predicted[t][card.i];
      says.className = `says ${right === 1 ? "right" : right === 0 ? "wrong" : ""}`;
      const prediction = element("span");
      const asked = run.asked[t][card.i];
      if (known(asked) && asked !== said) prediction.append(`for ${data.classes[asked] ?? asked}; `);
      if (known(said)) {
        const predicted = element("b", { textContent: `${data.classes[said] ?? said}${verdict}` });
        prediction.append(predicted, ` ${figure(run.confidence[t][card.i])}`);
      }
      says.replaceChildren(dotted(place, run), prediction);
      const what = [data.samples[card.i].title, nameOf(place, run), prediction.textContent, data.slices[slice()].toLowerCase(), momentName(t)];
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
  drawPlaces(t);
  drawCards(t);
  keepState();
}
