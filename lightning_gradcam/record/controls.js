// State: what is not as it was at the start stands in the address, so that a link leads to what is seen.

const CONTROLS = ["run", "colors", "side", "strength", "scale", "sort", "class", "group", "verdict", "slice"];
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
  $("blind").checked = state.has("blind") && data.sides.length > 1;
  const places = (state.get("blind") ?? "").split(".").map(Number);
  const fits = places.length === data.sides.length && data.sides.every((_, side) => places.includes(side));
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

/** Name the sides; when blind by letters, in these places or in random ones. */
function setNames(places = null) {
  const blind = $("blind").checked;
  order = data.sides.map((_, i) => i);
  if (blind) {
    order = places ?? order.map((side) => [Math.random(), side]).sort((one, two) => one[0] - two[0]).map((pair) => pair[1]);
  }
  names = data.sides.map((side, i) => (blind ? String.fromCharCode(65 + order.indexOf(i)) : side.name));
  $("title").textContent = `Grad-CAM: ${order.map((side) => names[side]).join(" and ")}`;
  document.title = $("title").textContent;
  $("notes").hidden = blind;
  hideUnlike(blind);
}

/** When blind, hide what tells a side by how many runs it has: bands, and the runs that another side has none for. */
function hideUnlike(blind) {
  const [fewest, most] = [Math.min(...runsASide), Math.max(...runsASide)];
  const hidden = blind && fewest < most;
  for (const option of $("run").options) option.hidden = hidden && option.value > fewest;
  if (hidden && $("run").value > fewest) $("run").value = 1;
  for (const one of [$("bands"), ...document.querySelectorAll(".band")]) one.classList.toggle("unseen", hidden);
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
for (const id of ["run", "colors", "side", "strength", "scale", "sort", "class", "group", "verdict"]) $(id).addEventListener("input", draw);
$("blind").addEventListener("input", () => { setNames(); draw(); });
for (const [id, key] of Object.entries(FILTERS)) {
  const names = [...new Set(data.samples.map((sample) => sample[key]))].filter(Boolean);
  $(id).append(...names.map((name) => element("option", { value: name, textContent: name })));
}
$("group").parentElement.hidden = $("group").options.length === 1;
for (let run = 1; run <= Math.max(...runsASide); run++) $("run").append(element("option", { value: run, textContent: run }));
$("run").parentElement.hidden = $("run").options.length === 1;
if (data.sides.length === 1) {
  $("sort").querySelector("[value=difference]").remove();
  $("blind").parentElement.hidden = true;
}
$("side").parentElement.hidden = !data.runs.some((run) => run.signed);
for (const note of data.notes) $("notes").append(element("p", { textContent: note }));
$("bands").textContent = data.bands;
document.body.style.setProperty("--runs", data.sides.length);
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
