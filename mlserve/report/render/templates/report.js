"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("specs").textContent);
  // Vega's interpreter instead of generated code: the page's policy forbids the latter.
  const options = { actions: false, ast: true, renderer: "svg", tooltip: { theme: "custom" } };
  for (const [element, spec] of Object.entries(specs)) {
    const place = document.getElementById(element);
    vegaEmbed(place, spec, options)
      .then(() => { place.dataset.drawn = "true"; })
      .catch((error) => {
        console.error(`chart ${element}: ${error.message}`);
        place.dataset.drawn = "false";
        place.textContent = "This chart could not be drawn; the table has its figures.";
      });
  }
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
