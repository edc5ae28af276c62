"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  /** An element; strings among the children become text, never markup. */
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  // ---- light and dark -------------------------------------------------------------------------------------------

  const theme = byId("theme");
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => document.documentElement.dataset.theme === "dark";

  function setTheme(dark) {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    theme.textContent = dark ? "Light" : "Dark";
    document.querySelectorAll("figure.chart[data-drawn]").forEach(draw);
  }
  theme.addEventListener("click", () => setTheme(!isDark()));
  prefersDark.addEventListener("change", (event) => setTheme(event.matches));

  // ---- parts of the page ----------------------------------------------------------------------------------------

  const links = [...document.querySelectorAll("nav a")];
  const isLinked = (view) => links.some((link) => link.hash === "#" + view.id);
  for (const view of document.querySelectorAll(".view")) if (!isLinked(view)) view.remove();
  const views = [...document.querySelectorAll(".view")];

  function show() {
    const wanted = location.hash.slice(1);
    if (wanted === "main") return;
    const chosen = views.some((view) => view.id === wanted) ? wanted : views[0].id;
    for (const view of views) view.hidden = view.id !== chosen;
    for (const link of links) {
      if (link.hash === "#" + chosen) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (wanted) window.scrollTo(0, 0); // the page of a study loads itself anew, and stays where it is
  }
  window.addEventListener("hashchange", show);

  // ---- charts ---------------------------------------------------------------------------------------------------

  // Okabe's and Ito's colours, told apart by colour-blind readers; dashes and markers differ, too.
  const LIGHT = ["#1a1d21", "#D55E00", "#0072B2", "#00845f", "#B4528A", "#9a6b00", "#2d8bc4", "#6b7280"];
  const DARK = ["#f2f2f2", "#FF8A3D", "#56B4E9", "#2FC79A", "#E59AC2", "#F0C24A", "#9AD0F5", "#AAAAAA"];
  const DASHES = ["solid", "longdash", "dot", "dashdot", "dash"];
  const SVG_DASHES = ["", "8 3", "2 3", "7 3 2 3", "5 3"];
  const MARKERS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star"];
  const charts = new Map(data.charts.map((chart) => [chart.name, chart]));
  const colour = (method) => (isDark() ? DARK : LIGHT)[method % 8];
  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function hover(chart, series, index) {
    const parts = [chart.methods[series.method]];
    if (series.at) parts.push(chart.cases[series.at[index]]);
    if (series.hint) parts.push(series.hint);
    return parts.map((part) => escaped(part)).join("<br>");
  }

  // Plotly takes labels for a small markup of its own.
  const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function trace(chart, series, hidden) {
    const line = series.kind === "line";
    const interval = series.kind.startsWith("interval");
    const own = colour(series.method);
    const text = series.x.map((_, index) => hover(chart, series, index));
    const found = {
      x: series.x,
      y: series.y,
      mode: line ? "lines" : "markers",
      type: "scatter",
      name: escaped(chart.methods[series.method]),
      visible: !hidden.has(series.method),
      connectgaps: false,
      text,
      customdata: series.at,
      hovertemplate: "%{text}<br>%{x:.4~g}, %{y:.4~g}<extra></extra>",
      opacity: !series.faint ? 1 : line ? 0.75 : series.x.length < 100 ? 0.7 : series.x.length < 400 ? 0.45 : 0.3,
      line: { color: own, width: series.faint ? 1.2 : 2.6, dash: DASHES[series.method % 5] },
      marker: {
        color: own,
        size: interval ? 11 : series.faint ? 4.5 : 9,
        symbol: MARKERS[series.method % 8],
        line: { width: interval || !series.faint ? 1.5 : 0, color: variable("--surface") },
      },
    };
    if (interval) {
      const along = series.kind === "interval-x" ? "x" : "y";
      const above = series.high.map((end, index) => end - series[along][index]);
      const below = series.low.map((end, index) => series[along][index] - end);
      found["error_" + along] = { type: "data", symmetric: false, array: above, arrayminus: below, color: own, thickness: 2.4, width: 7 };
      const ends = (index) => `${series.low[index].toPrecision(4)} to ${series.high[index].toPrecision(4)}`;
      found.text = text.map((entry, index) => (series.low[index] === null ? entry : `${entry}<br>${ends(index)}`));
      found.hovertemplate = `%{text}<br>%{${along}:.4~g}<extra></extra>`;
    }
    if (chart.name.includes("strip-") && !interval) found.hovertemplate = "%{text}<br>%{y:.4~g}<extra></extra>";
    return found;
  }

  function axisLayout(axis, reversed) {
    const found = {
      title: { text: escaped(axis.label), standoff: 8, font: { size: 13 } },
      gridcolor: variable("--grid"),
      linecolor: variable("--line"),
      zeroline: false,
      automargin: true,
      type: axis.log ? "log" : "linear",
    };
    if (axis.limits) {
      const slack = 0.03 * (axis.limits[1] - axis.limits[0]);
      found.range = [axis.limits[0] - slack, axis.limits[1] + slack];
    }
    if (axis.log) found.exponentformat = "none";
    if (axis.ticks.length) {
      found.tickvals = axis.ticks.map((_, index) => index);
      found.ticktext = axis.ticks.map(escaped);
      found.range = reversed ? [axis.ticks.length - 0.4, -0.6] : [-0.6, axis.ticks.length - 0.4];
      found.showgrid = false;
    }
    return found;
  }

  function layout(panel) {
    const line = { color: variable("--muted"), width: 1, dash: "dot" };
    const shapes = [];
    const square = panel.line === "diagonal";
    if (panel.line === "x") shapes.push({ type: "line", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line });
    if (panel.line === "y") shapes.push({ type: "line", y0: 0, y1: 0, xref: "paper", x0: 0, x1: 1, line });
    if (square) {
      const numbers = panel.series.flatMap((series) => [...series.x, ...series.y]).filter((value) => value !== null);
      const [low, high] = panel.x.limits || [Math.min(...numbers), Math.max(...numbers)];
      shapes.push({ type: "line", x0: low, y0: low, x1: high, y1: high, line });
    }
    const categories = panel.y.ticks.length;
    return {
      title: { text: escaped(panel.title), font: { size: 14 }, x: 0.02, xanchor: "left", y: 0.98, yanchor: "top" },
      height: categories ? Math.max(170, 110 + 34 * categories) : 330,
      margin: { l: 52, r: 14, t: 34, b: 46 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: variable("--text"), family: "inherit", size: 12.5 },
      xaxis: { ...axisLayout(panel.x, false), constrain: square ? "domain" : "range" },
      yaxis: { ...axisLayout(panel.y, true), ...(square ? { scaleanchor: "x", constrain: "domain" } : {}) },
      shapes,
      showlegend: false,
      hovermode: "closest",
      hoverlabel: { bgcolor: variable("--surface"), bordercolor: variable("--line"), font: { color: variable("--text") } },
    };
  }

  const CONFIG = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg" },
  };

  function legend(figure, chart, used) {
    const place = figure.querySelector(".legend");
    const categories = chart.panels.some((panel) => panel.x.ticks.length || panel.y.ticks.length);
    const single = chart.panels.every((panel) => panel.line === "diagonal");
    place.hidden = used.length < 2 || categories || single;
    place.replaceChildren(...used.map((method) => {
      const sample = `<svg viewBox="0 0 30 12" aria-hidden="true"><line x1="0" y1="6" x2="30" y2="6" stroke="${colour(method)}" stroke-width="3" stroke-dasharray="${SVG_DASHES[method % 5]}"/></svg>`;
      const button = make("button", {
        type: "button",
        "aria-pressed": String(!figure.hiddenMethods.has(method)),
        onclick: () => {
          if (figure.hiddenMethods.has(method)) figure.hiddenMethods.delete(method);
          else figure.hiddenMethods.add(method);
          draw(figure);
          place.children[used.indexOf(method)].focus();
        },
      });
      button.innerHTML = sample;
      button.append(chart.methods[method]);
      return button;
    }));
  }

  function draw(figure) {
    const names = figure.dataset.charts.split(" ");
    const select = figure.querySelector("select");
    const chart = charts.get(names[select ? Number(select.value) : 0]);
    figure.dataset.drawn = "yes";
    figure.hiddenMethods ||= new Set();
    figure.querySelector("h3").textContent = chart.title;
    figure.querySelector("figcaption p").textContent = chart.note;
    const used = [...new Set(chart.panels.flatMap((panel) => panel.series.map((series) => series.method)))].sort((a, b) => a - b);
    legend(figure, chart, used);
    const place = figure.querySelector(".panels");
    place.classList.toggle("single", chart.panels.length === 1);
    place.classList.toggle("square", chart.panels[0].line === "diagonal");
    while (place.children.length > chart.panels.length) {
      Plotly.purge(place.lastChild);
      place.lastChild.remove();
    }
    // All of them first: how wide one is depends on how many there are.
    while (place.children.length < chart.panels.length) place.append(make("div", { class: "panel", role: "img" }));
    chart.panels.forEach((panel, index) => {
      const element = place.children[index];
      element.setAttribute("aria-label", `${chart.title}: ${panel.title}. ${chart.note}`);
      const traces = panel.series.map((series) => trace(chart, series, figure.hiddenMethods));
      Plotly.react(element, traces, layout(panel), CONFIG);
      if (!element.dataset.listens) {
        element.dataset.listens = "yes";
        element.on("plotly_click", (event) => {
          const at = event.points[0].customdata;
          const shown = charts.get(figure.dataset.shown);
          if (typeof at === "number" && data.cases) openCase(shown.cases[at]);
        });
      }
    });
    figure.dataset.shown = chart.name;
    place.style.minHeight = "0";
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !entry.target.dataset.drawn) draw(entry.target);
    }
  }, { rootMargin: "400px" });

  const script = (source) => new Promise((resolve, reject) => {
    const element = make("script", { src: source, onload: resolve, onerror: () => reject(new Error(`${source} is missing; it belongs beside this page`)) });
    document.head.append(element);
  });

  async function startCharts() {
    const figures = [...document.querySelectorAll("figure.chart")];
    try {
      if (figures.length) await script("plotly.min.js");
    } catch (error) {
      for (const figure of figures) figure.querySelector(".panels").textContent = `The chart cannot be drawn: ${error.message}.`;
      return;
    }
    for (const figure of figures) {
      figure.querySelector("select")?.addEventListener("change", () => draw(figure));
      seen.observe(figure);
    }
    window.addEventListener("beforeprint", () => figures.forEach(draw));
  }

  // ---- cases ----------------------------------------------------------------------------------------------------

  const columns = data.cases ? data.cases.columns : [];
  const column = Object.fromEntries(columns.map((entry) => [entry.name, entry]));
  const value = (name, row) => {
    const own = column[name];
    return own.codes ? own.entries[own.codes[row]] : own.values[row];
  };
  const HEADINGS = {
    dataset: "Dataset", configuration: "Configuration", plans: "Plans", trainer: "Trainer", fold: "Fold", seed: "Seed",
    case: "Case", label: "Label", Dice: "Dice (%)", Precision: "Precision (%)", Recall: "Recall (%)",
    "HD95 (mm)": "HD95 (mm)", volume_ml: "Volume (ml)",
  };
  const PERCENT = new Set(["Dice", "Precision", "Recall"]);
  const FEW = 100;
  let shownRows = FEW;
  let sorted = { name: "Dice", ascending: true };

  const differs = (name) => column[name].codes ? column[name].entries.length > 1 : new Set(column[name].values).size > 1;
  const hasNumbers = (name) => column[name].values?.some((number) => number !== null && number !== -1);
  const visible = Object.keys(HEADINGS).filter((name) => {
    if (!column[name]) return false;
    if (["case", "trainer", "label"].includes(name)) return true;
    return column[name].codes ? differs(name) : hasNumbers(name);
  });

  function written(name, row) {
    const own = value(name, row);
    if (own === null || (own === -1 && (name === "fold" || name === "seed"))) return "–";
    if (PERCENT.has(name)) return (100 * own).toFixed(1);
    if (name === "HD95 (mm)") return own.toFixed(1);
    if (name === "volume_ml") return own >= 100 ? own.toFixed(0) : own.toPrecision(3).replace(/\.?0+$/, "");
    return String(own);
  }

  const filters = byId("filters");
  const chosen = {};

  function startFilters() {
    filters.addEventListener("submit", (event) => event.preventDefault());
    const search = make("input", { type: "search", oninput: (event) => { chosen.text = event.target.value; refresh(); } });
    filters.append(make("label", {}, "Case contains", search));
    for (const name of ["dataset", "configuration", "trainer", "label", "fold", "seed"]) {
      const values = column[name].codes ? column[name].entries : [...new Set(column[name].values)].sort((a, b) => a - b);
      if (values.length < 2) continue;
      const select = make("select", { onchange: (event) => { chosen[name] = event.target.value; refresh(); } }, make("option", { value: "" }, "all"));
      for (const entry of values) select.append(make("option", { value: String(entry) }, entry === -1 ? "none" : String(entry)));
      filters.append(make("label", {}, HEADINGS[name], select));
    }
    for (const [name, text] of [["from", "Dice from (%)"], ["to", "Dice to (%)"]]) {
      const input = make("input", { type: "number", min: 0, max: 100, step: "any", class: "narrow", oninput: (event) => { chosen[name] = event.target.value; refresh(); } });
      filters.append(make("label", {}, text, input));
    }
  }

  function passes(row) {
    if (chosen.text && !value("case", row).toLowerCase().includes(chosen.text.toLowerCase())) return false;
    for (const name of ["dataset", "configuration", "trainer", "label", "fold", "seed"]) {
      if (chosen[name] && String(value(name, row)) !== chosen[name]) return false;
    }
    const dice = value("Dice", row);
    if (chosen.from && !(dice !== null && 100 * dice >= Number(chosen.from))) return false;
    return !(chosen.to && !(dice !== null && 100 * dice <= Number(chosen.to)));
  }

  function refresh(keepRows) {
    if (!keepRows) shownRows = FEW;
    let rows = [];
    for (let row = 0; row < data.cases.rows; row++) if (passes(row)) rows.push(row);
    const direction = sorted.ascending ? 1 : -1;
    const compare = new Intl.Collator(undefined, { numeric: true }).compare;
    rows.sort((a, b) => {
      const [x, y] = [value(sorted.name, a), value(sorted.name, b)];
      if (x === null || y === null) return (x === null) - (y === null); // what there is not comes last either way
      return direction * (typeof x === "string" ? compare(x, y) : x - y) || a - b;
    });
    byId("count").textContent = `${rows.length} of ${data.cases.rows} rows`;
    const body = byId("table").tBodies[0];
    body.replaceChildren(...rows.slice(0, shownRows).map((row) => make("tr", {}, ...visible.map((name) => {
      if (name !== "case") return make("td", column[name].codes ? {} : { class: "number" }, written(name, row));
      const open = () => openCase(value("case", row), value("label", row), value("dataset", row));
      return make("td", {}, make("button", { type: "button", onclick: open }, written(name, row)));
    }))));
    byId("more").hidden = rows.length <= shownRows;
    document.querySelectorAll("#table th").forEach((heading, index) => {
      if (visible[index] === sorted.name) heading.setAttribute("aria-sort", sorted.ascending ? "ascending" : "descending");
      else heading.removeAttribute("aria-sort");
    });
  }

  function startTable() {
    const heading = (name) => make("th", { scope: "col", class: column[name].codes ? null : "number" }, make("button", {
      type: "button",
      onclick: () => {
        sorted = { name, ascending: sorted.name === name ? !sorted.ascending : true };
        refresh();
      },
    }, HEADINGS[name]));
    byId("table").tHead.append(make("tr", {}, ...visible.map(heading)));
    byId("more").addEventListener("click", () => { shownRows += 10 * FEW; refresh(true); });
    refresh();
  }

  function startGallery() {
    byId("gallery-part").hidden = !data.cases.seen.length;
    byId("gallery").append(...data.cases.seen.map((entry) => {
      const picture = entry.picture
        ? make("img", { src: entry.small, loading: "lazy", alt: "" })
        : make("span", { class: "none" }, entry.problem || "no picture");
      const why = entry.reasons.slice(0, 3).join("; ") + (entry.reasons.length > 3 ? ` and ${entry.reasons.length - 3} more` : "");
      const about = make("span", { class: "about" }, make("strong", {}, `${entry.case}, ${entry.label}`), make("span", { class: "why" }, why));
      return make("button", { type: "button", class: "card", onclick: () => openCase(entry.case, entry.label, entry.dataset) }, picture, about);
    }));
  }

  // ---- one case -------------------------------------------------------------------------------------------------

  const dialog = byId("case");
  byId("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { closeViewer(); byId("case-body").replaceChildren(); });

  function openCase(name, label, dataset) {
    const own = data.cases.seen.filter((entry) => entry.case === name && (!dataset || entry.dataset === dataset));
    const entry = own.find((candidate) => candidate.label === label) || own[0];
    byId("case-title").textContent = entry ? `${name}, ${entry.label}` : name;
    const body = byId("case-body");
    body.replaceChildren();
    if (entry?.picture) {
      const [width, height] = entry.size;
      body.append(make("img", { src: entry.picture, width, height, alt: `Contours of the reference and of each prediction of ${entry.label} in ${name}` }));
    }
    if (!entry) body.append(make("p", { class: "muted" }, data.cases.seen.length ? "There is no picture of this case; nnunet-godc report --cases draws more." : "There are no pictures: the report was made from tables alone."));
    if (entry?.problem) body.append(make("p", { class: "muted" }, entry.problem));
    if (entry?.volume) {
      const place = make("div", { class: "viewer" });
      const open = make("button", { type: "button", id: "open-viewer", onclick: () => openViewer(entry, place) }, "Open the viewer");
      place.append(open);
      body.append(place);
    }
    if (entry) body.append(make("ul", { class: "sentences" }, ...entry.reasons.map((reason) => make("li", {}, reason))));
    body.append(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers of this case" }, caseTable(name, dataset)));
    dialog.showModal();
    body.scrollTop = 0;
  }

  function caseTable(name, dataset) {
    const shown = visible.filter((entry) => entry !== "case" && entry !== "dataset");
    const rows = [];
    for (let row = 0; row < data.cases.rows; row++) {
      if (value("case", row) === name && (!dataset || value("dataset", row) === dataset)) rows.push(row);
    }
    const head = make("thead", {}, make("tr", {}, ...shown.map((entry) => make("th", { scope: "col", class: column[entry].codes ? null : "number" }, HEADINGS[entry]))));
    const cells = (row) => shown.map((entry) => make("td", column[entry].codes ? {} : { class: "number" }, written(entry, row)));
    return make("table", {}, make("caption", {}, `All trainings on ${name}`), head, make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells(row)))));
  }

  // ---- viewer ---------------------------------------------------------------------------------------------------

  const volumes = new Map();
  let viewer = null;
  window.nnunetGodcReport = { volume: (key, content) => volumes.set(key, content), viewer: () => viewer };

  const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

  async function unpacked(text) {
    const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  const OVERLAYS = [
    { name: "reference", text: "Reference", colours: [[86, 180, 233]] },
    { name: "prediction", text: "Prediction", colours: [[255, 157, 0]] },
    { name: "difference", text: "Missed and too much", colours: [[213, 94, 160], [240, 228, 66]] },
  ];

  /** A NIfTI file; of an overlay, values are taken as they are. */
  function nifti(header, voxels, name, scaled) {
    const bytes = new Uint8Array(header.length + voxels.length);
    bytes.set(header);
    bytes.set(voxels, header.length);
    if (!scaled) {
      const fields = new DataView(bytes.buffer);
      fields.setFloat32(112, 1, true); // scl_slope
      fields.setFloat32(116, 0, true); // scl_inter
    }
    return niivue.NVImage.loadFromFile({ file: new File([bytes], `${name}.nii`), name: `${name}.nii` });
  }

  function closeViewer() {
    viewer?.gl?.getExtension("WEBGL_lose_context")?.loseContext();
    viewer = null;
  }

  async function openViewer(entry, place) {
    const status = make("p", { role: "status" }, "Loading …");
    place.replaceChildren(status);
    try {
      if (!window.niivue) await script("niivue.js");
      if (!volumes.has(entry.key)) await script(entry.volume);
      await startViewer(entry, volumes.get(entry.key), place);
    } catch (error) {
      place.replaceChildren(make("p", { role: "alert" }, `The viewer cannot be shown: ${error.message}`));
    }
  }

  async function startViewer(entry, content, place) {
    const header = bytesOf(content.header);
    const [image, reference, ...predictions] = await Promise.all([content.image, content.reference, ...content.predictions.map((own) => own.voxels)].map(unpacked));
    const state = { label: entry.label, prediction: 0, opacity: 0.45, shown: new Set(["reference", "prediction"]) };
    const canvas = make("canvas", { tabindex: "0", "aria-label": `Viewer of ${entry.case}. Arrow keys, page up and page down move the planes.` });
    const position = make("p", { class: "muted", role: "status" }, "");
    const own = new niivue.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [1, 1, 1, 0.5], crosshairWidth: 0.3, crosshairWidthUnit: "percent", isRadiologicalConvention: true, dragAndDropEnabled: false,
      multiplanarShowRender: 0, isNearestInterpolation: true, loadingText: "", isColorbar: false, fontColor: [1, 1, 1, 1], logLevel: "silent",
      // Letters in the corner: for a single plane, NiiVue puts that of its left hand side on the right.
      isCornerOrientationText: true, sagittalNoseLeft: true, isResizeCanvas: true,
    });
    viewer = own;
    own.onLocationChange = (where) => { position.textContent = `${where.mm ? [...where.mm].slice(0, 3).map((v) => v.toFixed(1)).join(", ") : ""} mm`; };
    // NiiVue sizes and colours what its canvas lies in.
    place.replaceChildren(controls(content, state, update), make("div", { class: "canvas" }, canvas), position);
    await own.attachToCanvas(canvas);
    const base = await nifti(header, image, "image", true);
    base.colormap = "gray";
    own.addVolume(base);
    await update();
    own.moveCrosshairInVox(...content.point.map((target, axis) => target - Math.round(own.scene.crosshairPos[axis] * (content.size[axis] - 1))));
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
      if (!moves[event.key]) return;
      event.preventDefault();
      event.stopPropagation();
      own.moveCrosshairInVox(...moves[event.key]);
    }, true);
    canvas.focus();

    async function update(change) {
      Object.assign(state, change);
      const values = new Set(content.labels.find((label) => label.name === state.label).values);
      const inside = (voxels) => Uint8Array.from(voxels, (voxel) => (values.has(voxel) ? 1 : 0));
      const truth = inside(reference);
      const guess = inside(predictions[state.prediction]);
      const masks = { reference: truth, prediction: guess, difference: truth.map((voxel, index) => (voxel === guess[index] ? 0 : voxel ? 1 : 2)) };
      base.cal_min = state.low ?? content.window[0];
      base.cal_max = state.high ?? content.window[1];
      while (own.volumes.length > 1) own.removeVolumeByIndex(1);
      for (const overlay of OVERLAYS) {
        if (!state.shown.has(overlay.name)) continue;
        const volume = await nifti(header, masks[overlay.name], overlay.name, false);
        const channel = (index) => [0, ...overlay.colours.map((rgb) => rgb[index])];
        volume.setColormapLabel({ R: channel(0), G: channel(1), B: channel(2), A: [0, ...overlay.colours.map(() => 255)], I: [0, ...overlay.colours.map((_, index) => index + 1)], labels: ["", ...overlay.colours.map(() => overlay.text)] });
        volume.opacity = state.opacity;
        own.addVolume(volume);
      }
      own.setSliceType(state.planes ?? own.sliceTypeMultiplanar);
      own.updateGLVolume();
    }
  }

  function controls(content, state, update) {
    const range = (text, attributes, change) => make("label", {}, text, make("input", { ...attributes, oninput: (event) => change(Number(event.target.value)) }));
    const select = (text, options, at, change) => {
      const element = make("select", { onchange: (event) => change(event.target.value) }, ...options.map(([key, name]) => make("option", { value: key }, name)));
      element.value = at;
      return make("label", {}, text, element);
    };
    const step = (content.range[1] - content.range[0]) / 255 || 1;
    const numbers = { type: "range", min: content.range[0], max: content.range[1], step };
    const boxes = OVERLAYS.map((overlay) => {
      const box = make("input", { type: "checkbox", onchange: (event) => {
        if (event.target.checked) state.shown.add(overlay.name);
        else state.shown.delete(overlay.name);
        update();
      } });
      box.checked = state.shown.has(overlay.name);
      const swatches = overlay.colours.map((rgb) => { const swatch = make("span", { class: "swatch" }); swatch.style.background = `rgb(${rgb})`; return swatch; });
      return make("label", { class: "check" }, box, ...swatches, overlay.text);
    });
    const parts = [
      select("Planes", [["3", "all three"], ["0", "axial"], ["1", "coronal"], ["2", "sagittal"], ["4", "in 3D"]], "3", (planes) => update({ planes: Number(planes) })),
      select("Prediction", content.predictions.map((own, index) => [String(index), own.name]), "0", (at) => update({ prediction: Number(at) })),
    ];
    if (content.labels.length > 1) parts.push(select("Label", content.labels.map((label) => [label.name, label.name]), state.label, (label) => update({ label })));
    parts.push(make("fieldset", { "aria-label": "Overlays" }, ...boxes));
    parts.push(range("Opacity", { type: "range", min: 0, max: 1, step: 0.05, value: state.opacity }, (opacity) => update({ opacity })));
    if (content.hasImage) {
      parts.push(make("span", { class: "pair" },
        range("Window from", { ...numbers, value: content.window[0] }, (low) => update({ low })),
        range("to", { ...numbers, value: content.window[1] }, (high) => update({ high }))));
    }
    if (content.step > 1) parts.push(make("span", { class: "muted" }, `Up to ${content.step} voxels along an axis are shown as one`));
    return make("div", { class: "controls" }, ...parts);
  }

  // ---- start ----------------------------------------------------------------------------------------------------

  setTheme(prefersDark.matches);
  show();
  if (data.cases) {
    startFilters();
    startTable();
    startGallery();
  }
  window.addEventListener("load", () => setTimeout(startCharts)); // the page is there before the large script
})();
