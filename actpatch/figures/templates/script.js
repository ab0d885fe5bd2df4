for (const button of document.querySelectorAll("button[data-file]")) {
  button.addEventListener("click", async () => {
    const packed = atob(document.getElementById(button.dataset.from).textContent);
    const bytes = new Blob([Uint8Array.from(packed, (letter) => letter.charCodeAt(0))]);
    const text = await new Response(bytes.stream().pipeThrough(new DecompressionStream("gzip"))).text();
    // The table's columns one below the other; a cell in quotes may hold ends of lines.
    const cells = text.match(/(?:"(?:[^"]|"")*"|[^"\n]*)\n/g);
    const columns = [...Array(Number(button.dataset.columns)).keys()];
    const nRows = cells.length / columns.length;
    const lineAt = (row) => columns.map((column) => cells[column * nRows + row].slice(0, -1)).join(",") + "\n";
    const lines = Array.from({ length: nRows }, (_, row) => lineAt(row));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "text/csv" }));
    link.download = button.dataset.file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}
const dark = matchMedia("(prefers-color-scheme: dark)");
const figures = [...document.querySelectorAll("script[data-draws]")].map((carrier) => ({
  place: document.getElementById(carrier.dataset.draws),
  ...JSON.parse(carrier.textContent),
}));
let onPaper = false;
// Browsers do not tell figures that paper is narrower than the window. What needs more is made smaller.
const paperWidth = (place) => {
  const width = Math.max(Math.min(PAPER_WIDTH, place.clientWidth), parseFloat(place.style.minWidth));
  place.style.zoom = Math.min(1, PAPER_WIDTH / width);
  return width;
};
// The page itself shows what a figure is called; the picture that the button saves has it too, at its full width.
const saving = {
  name: "Download PNG",
  title: "Download PNG",
  icon: Plotly.Icons.camera,
  click: (place) => {
    const { figure } = figures.find((one) => one.place === place);
    const { width = place.clientWidth, height = place.clientHeight } = figure.layout;
    const whole = { data: figure.data, layout: { ...figure.layout, width, height }, config: CONFIG };
    Plotly.downloadImage(whole, { format: "png", scale: 2, width, height, filename: place.id });
  },
};
const BUTTONS = { ...CONFIG, modeBarButtonsToRemove: ["toImage"], modeBarButtonsToAdd: [saving] };
const shown = (place, layout) => {
  const taken = Number(place.dataset.taken);
  const width = onPaper ? paperWidth(place) : undefined;
  if (!taken) return { ...layout, width };
  const margin = { ...layout.margin, t: layout.margin.t - taken };
  return { ...layout, width, title: {}, margin, height: layout.height - taken };
};
let latest = 0;
const draw = async () => {
  const mine = ++latest;
  const isDark = dark.matches && !onPaper;
  for (const { place, figure, colours } of figures) {
    for (const [path, onLight, onDark] of colours) {
      const part = path.slice(0, -1).reduce((whole, key) => whole[key], figure);
      part[path.at(-1)] = isDark ? onDark : onLight;
    }
    place.style.zoom = "";
    Plotly.newPlot(place, figure.data, shown(place, figure.layout), BUTTONS);
    if (onPaper) continue; // what is not drawn when the event ends is not printed
    await new Promise((goOn) => setTimeout(goOn)); // the page can be read meanwhile
    if (mine !== latest) return;
  }
};
draw();
dark.addEventListener("change", draw);
for (const [moment, isPaper] of [["beforeprint", true], ["afterprint", false]])
  window.addEventListener(moment, () => {
    onPaper = isPaper;
    draw();
  });
const fit = new ResizeObserver(() => {
  for (const card of document.querySelectorAll(".card"))
    card.classList.toggle("scrolls", card.scrollWidth > card.clientWidth + 1);
  for (const { place } of figures) place.classList.toggle("bare", place.clientWidth < place.dataset.numbers);
});
for (const card of document.querySelectorAll(".card")) fit.observe(card);
