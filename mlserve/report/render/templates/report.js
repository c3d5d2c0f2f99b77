"use strict";
(() => {
  const { config, charts } = JSON.parse(document.getElementById("charts").textContent);
  const quietly = matchMedia("(prefers-reduced-motion: reduce)");
  const views = new Map();

  // Data travels as columns, one value for a column that is the same in every row.
  const inflated = ({ rows, columns }) => {
    const every = Object.entries(columns);
    const value = (column, row) => (Array.isArray(column) ? column[row] : column);
    const row = (_, number) => Object.fromEntries(every.map(([name, column]) => [name, value(column, number)]));
    return Array.from({ length: rows }, row);
  };
  const complete = (spec) => {
    const datasets = Object.entries(spec.datasets).map(([name, table]) => [name, inflated(table)]);
    return { ...spec, datasets: Object.fromEntries(datasets) };
  };

  // Vega's interpreter instead of generated code: the page's policy forbids the latter.
  const options = { actions: false, ast: true, renderer: "svg", tooltip: { theme: "custom" }, config };

  const draw = async (place, name) => {
    const { title, legend, spec } = charts[name];
    place.setAttribute("aria-label", spec.description);
    place.dataset.chart = name;
    const caption = place.closest("figure").querySelector("figcaption");
    caption.textContent = title;
    const own = place.closest("figure").querySelector(".legend");
    if (own) own.replaceChildren(...legend.map(keyed));
    try {
      views.get(place)?.finalize();
      views.set(place, (await vegaEmbed(place, complete(spec), options)).view);
      place.dataset.drawn = "true";
    } catch (error) {
      console.error(`chart ${name}: ${error.message}`);
      views.delete(place);
      place.dataset.drawn = "false";
      place.textContent = "This chart could not be drawn; the table has its figures.";
    }
  };

  const keyed = ({ name, colour }) => {
    const key = document.createElement("i");
    key.className = "key";
    key.style.background = colour;
    const shown = document.createElement("span");
    shown.append(key, name);
    return shown;
  };

  // What a zoomed scale shows lies in signals that Vega-Lite names after the selection and the field.
  const zoomed = (view) => {
    const names = Object.keys(view.getState({ signals: (name) => /^zoom_[a-z]+$/.test(name) }).signals);
    return names.filter((name) => !/^zoom_(x|y|tuple|modify|toggle|toggled)$/.test(name));
  };

  const zoom = (place, factor) => {
    const view = views.get(place);
    if (!view) return;
    for (const name of zoomed(view)) {
      const channel = nameOfScale(place, name);
      const [low, high] = view.scale(channel).domain();
      const log = view.scale(channel).type === "log";
      const [from, to] = log ? [Math.log(low), Math.log(high)] : [low, high];
      const half = ((to - from) * factor) / 2;
      const middle = (from + to) / 2;
      const domain = [middle - half, middle + half];
      view.signal(name, log ? domain.map(Math.exp) : domain);
    }
    view.run();
  };

  const nameOfScale = (place, signal) => {
    const field = signal.slice("zoom_".length);
    const across = (layer) => layer.encoding?.x?.field === field;
    return charts[place.dataset.chart].spec.layer.some(across) ? "x" : "y";
  };

  const tools = (place) => {
    const bar = document.createElement("div");
    bar.className = "tools";
    for (const [text, label, factor] of [["−", "Zoom out", 1.5], ["+", "Zoom in", 1 / 1.5], ["Reset", "Reset the zoom", 0]]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.title = label;
      button.setAttribute("aria-label", label);
      button.addEventListener("click", () => (factor ? zoom(place, factor) : draw(place, place.dataset.chart)));
      bar.append(button);
    }
    place.closest("figure").append(bar);
  };

  // One after another with room between them, so that the page answers while it draws.
  const drawAll = async () => {
    for (const place of document.querySelectorAll(".chart")) {
      await draw(place, place.dataset.first);
      if (place.dataset.tools === "true") tools(place);
      await new Promise((resume) => setTimeout(resume));
    }
    document.documentElement.dataset.drawn = "true";
  };

  for (const select of document.querySelectorAll("select[data-shows]")) {
    select.addEventListener("change", () => draw(document.getElementById(select.dataset.shows), select.value));
  }

  for (const input of document.querySelectorAll("input[name=theme]")) {
    input.addEventListener("change", () => { document.documentElement.dataset.theme = input.value; });
  }

  const number = (cell) => (cell.dataset.value === "" ? Infinity : Number(cell.dataset.value));
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      heading.querySelector("button")?.addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        for (const other of headings) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].map((row) => [row.cells[column], row]);
        rows.sort(([one], [other]) => "value" in one.dataset
          ? number(one) - number(other) || 0
          : one.textContent.trim().localeCompare(other.textContent.trim(), undefined, { numeric: true }));
        if (down) rows.reverse();
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  }

  for (const input of document.querySelectorAll("input[data-filters]")) {
    const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
    const said = document.getElementById(input.getAttribute("aria-describedby"));
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
      said.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
    });
  }

  for (const button of document.querySelectorAll("button[data-copies]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copies);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
        button.textContent = "Selected: copy it";
      }
    });
  }

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not(.long)")) details.open = true;
  });
  for (const link of document.querySelectorAll("nav a")) {
    link.addEventListener("click", () => { document.documentElement.style.scrollBehavior = quietly.matches ? "auto" : ""; });
  }
  drawAll();
})();
