"use strict";

// Tables: a click on a head sorts by its column, another one the other way round; what has no number stays last.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    const numeric = head.classList.contains("number");
    const key = (row) => row.cells[column].dataset.key;
    const compare = (a, b) => numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    const number = (text) => text === "inf" ? "Infinity" : text;
    const rows = [...table.tBodies[0].rows].map((row) => [number(key(row)), row]);
    rows.sort(([a], [b]) => {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return (a === b ? 0 : compare(a, b)) * (down ? -1 : 1);
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  }));
}

// Figures, one after the other, so that the page answers while they are drawn; of many, those that come into sight.
const many = 60;
const described = JSON.parse(document.getElementById("plots").textContent);
const places = [...document.querySelectorAll(".plot")];
const settings = {
  responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"],
  showSendToCloud: false, plotlyServerURL: "", // nothing leaves the page
};
let drawn = 0;
const draw = async (place) => {
  const plot = described[place.id];
  try {
    await Plotly.newPlot(place, plot.data, plot.layout, settings);
  } catch (error) {
    place.classList.add("failed");
    place.textContent = `This figure could not be drawn: ${error}`;
    console.error(error);
  }
  document.documentElement.dataset.plots = String(++drawn);
};
if (places.length > many) {
  const watch = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      watch.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "800px" });
  places.forEach((place) => watch.observe(place));
} else {
  (async () => {
    for (const place of places) {
      await draw(place);
      await new Promise((done) => setTimeout(done));
    }
  })();
}
