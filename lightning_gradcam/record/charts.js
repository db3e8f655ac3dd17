// Charts: a line a side over the moments with its band, and the cursor that the slider moves.

const placeOf = (t) => (moments > 1 ? (1000 * t) / (moments - 1) : 500);

/** The path of a line; a moment between two without a value is a dot. */
function linePath(values, y) {
  const step = (value, t) => `${t > 0 && known(values[t - 1]) ? "L" : "M"}${placeOf(t)} ${y(value)}h0`;
  return values.map((value, t) => (known(value) ? step(value, t) : "")).join("");
}

/** The path of a band: for each stretch of moments with a value there along one edge, and back along the other. */
function bandPath([low, high], y) {
  let path = "";
  for (let t = 0; t < moments; t++) {
    if (!known(low[t])) continue;
    const there = [];
    for (; t < moments && known(low[t]); t++) there.push(t);
    const points = [...there.map((one) => [one, low]), ...there.reverse().map((one) => [one, high])];
    path += `M${points.map(([one, edge]) => `${placeOf(one)} ${y(edge[one])}`).join("L")}Z`;
  }
  return path;
}

function makeChart({ title, lines, bands }) {
  const top = Math.max(1e-9, ...[lines, ...bands].flat(2).filter(known));
  const high = top <= 1 ? (top > 0.5 ? 1 : top > 0.2 ? 0.5 : top > 0.1 ? 0.2 : 0.1) : top;
  const y = (value) => 100 - (100 * value) / high;
  const picture = svg("svg", { viewBox: "-6 -6 1012 112", preserveAspectRatio: "none", role: "img" });
  picture.append(svg("line", { class: "axis", x1: 0, x2: 1000, y1: 100, y2: 100 }), svg("line", { class: "axis", x1: 0, x2: 1000, y1: 0, y2: 0 }));
  const drawn = lines.map((values, side) => {
    const paths = [svg("path", { class: "band", d: bandPath(bands[side], y) }), svg("path", { d: linePath(values, y) })];
    picture.append(...paths);
    return paths;
  });
  const cursor = svg("line", { class: "now", y1: -4, y2: 104 });
  picture.append(cursor);
  picture.addEventListener("click", (event) => {
    const { left, width: across } = picture.getBoundingClientRect();
    moveTo(Math.round(((event.clientX - left) / across) * (moments - 1)));
  });
  const caption = element("figcaption");
  $("charts").append(element("figure", {}, caption, picture));
  return { title: `${title}, 0 to ${high.toPrecision(2)}`, lines, bands, drawn, cursor, caption, picture };
}

const charts = data.curves.map(makeChart);

/** A side's value in words; of several runs with the range, unless that tells when blind which side it is. */
function inWords(chart, side, t) {
  const value = figure(chart.lines[side][t]);
  const [low, high] = chart.bands[side].map((edge) => edge[t]);
  const several = Math.max(...runsASide) > 1 && known(low) && !$("bands").classList.contains("unseen");
  return several ? `${value} (${figure(low)} to ${figure(high)})` : value;
}

function drawCharts(t) {
  for (const chart of charts) {
    chart.caption.replaceChildren(element("strong", { textContent: chart.title }));
    order.forEach((side, place) => {
      const dot = element("span", { className: "dot" });
      dot.style.background = RUN_COLORS[place % RUN_COLORS.length];
      chart.caption.append(element("span", {}, dot, `${names[side]} ${inWords(chart, side, t)}`));
      const [band, line] = chart.drawn[side];
      band.style.color = line.style.stroke = RUN_COLORS[place % RUN_COLORS.length];
    });
    // In the order of the places, also when blind, and every line above every band.
    const [bands, lines] = [0, 1].map((which) => order.map((side) => chart.drawn[side][which]));
    for (const path of [...bands, ...lines]) chart.picture.insertBefore(path, chart.cursor);
    chart.cursor.setAttribute("x1", placeOf(t));
    chart.cursor.setAttribute("x2", placeOf(t));
    chart.picture.setAttribute("aria-label", `${chart.caption.textContent} at ${momentName(t)}`);
  }
}
