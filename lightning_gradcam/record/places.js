// Places: in what share of all maps each cell is among the strongest tenth, over the mean of the photos.

const { row: rowOfPlaces, places: placesOfSides } = rowOfCanvases();
$("places").prepend(rowOfPlaces);
for (const run of data.runs) run.places.bytes = Uint8Array.from(atob(run.places.cells), (letter) => letter.charCodeAt(0));

/** The mean of the photos in each slice. */
const meanPhoto = () =>
  data.slices.map((_, place) => photos[0][place].map((_, pixel) => photos.reduce((sum, photo) => sum + photo[place][pixel], 0) / photos.length));

function drawPlaces(t) {
  mean ??= meanPhoto();
  placesOfSides.forEach(({ canvas, says }, place) => {
    const run = runOf(data.sides[order[place]]);
    const { bytes, share, chance } = run.places;
    const size = run.grid.reduce((product, side) => product * side);
    const values = sideOf(bytes.subarray(t * size, (t + 1) * size), run.grid, 1);
    const context = canvas.getContext("2d");
    blend(context, mean[slice()], [[1, spread(values, run.grid, 1 / 255)]]); // one colour is one share everywhere
    if (!known(share[t])) writeOver(context, "no map");
    const most = element("b", { textContent: figure(share[t]) });
    const words = element("span", {}, "at most ", most, known(chance[t]) ? `, chance ${figure(chance[t])}` : "");
    says.replaceChildren(dotted(place, run), words);
    const what = [nameOf(place, run), words.textContent, data.slices[slice()].toLowerCase(), momentName(t)];
    canvas.setAttribute("aria-label", `Share of maps with each cell in their strongest tenth, ${what.filter(Boolean).join(", ")}`);
  });
}
