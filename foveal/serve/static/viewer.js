"use strict";
// The viewer: a list of images, one image with its looks, and the settings by which it is classified.

const $ = (id) => document.getElementById(id);
const state = { model: null, names: [], total: 0, name: null, file: null, about: null, answer: null, chosen: null, classifying: null, urls: [] };

const viewer = OpenSeadragon({
  id: "viewer",
  showNavigationControl: false,
  showNavigator: false,
  maxZoomPixelRatio: 8,
  minZoomImageRatio: 0.8,
  visibilityRatio: 0.4,
  animationTime: 0.6,
  imageLoaderLimit: 6,
  maxImageCacheCount: 400,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  placeholderFillStyle: "#16181c",
});
viewer.innerTracker.keyHandler = viewer.innerTracker.keyDownHandler = null; // keys are those of the page

// ---- requests

function says(response, body) {
  return (body && body.detail) || `the service answered ${response.status}`;
}

async function ask(address) {
  const response = await fetch(address);
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Error(says(response, body));
  return body;
}

function tell(message) {
  $("notice").textContent = message || "";
  $("notice").hidden = !message;
}

function element(kind, attributes, ...parts) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "style") for (const [key, one] of Object.entries(value)) made.style.setProperty(key, one);
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...parts);
  return made;
}

// ---- the list of images

async function list(more) {
  const search = $("search").value, offset = more ? state.names.length : 0;
  const found = await ask(`/v1/images?${new URLSearchParams({ search, offset, limit: 200 })}`);
  if (search !== $("search").value) return;
  state.names = more ? [...state.names, ...found.images] : found.images;
  state.total = found.total;
  if (!more) $("list").replaceChildren();
  for (const name of found.images) {
    const folder = name.includes("/") ? name.slice(0, name.lastIndexOf("/")) : "";
    const picture = element("img", { alt: "", loading: "lazy", src: `/v1/tile/7/0/0?${new URLSearchParams({ path: name })}` });
    picture.addEventListener("error", () => picture.removeAttribute("src"), { once: true });
    const text = element("span", {}, name.slice(folder ? folder.length + 1 : 0), ...(folder ? [element("small", {}, folder)] : []));
    const item = element("li", { tabindex: "0", title: name, "data-name": name }, picture, text);
    item.addEventListener("click", () => open(name));
    item.addEventListener("keydown", (event) => event.key === "Enter" && open(name));
    $("list").append(item);
  }
  $("more").hidden = state.names.length >= state.total;
  $("more").textContent = `${state.names.length} of ${state.total}, more`;
  current();
}

function current() {
  for (const item of $("list").children) {
    const here = item.dataset.name === state.name;
    item.setAttribute("aria-current", String(here));
    if (here) item.scrollIntoView({ block: "nearest" });
  }
}

// ---- one image

function clear() {
  state.classifying?.abort();
  state.urls.forEach(URL.revokeObjectURL);
  Object.assign(state, { answer: null, chosen: null, about: null, urls: [], name: null, file: null });
  viewer.clearOverlays();
  viewer.close();
  for (const id of ["looks", "classes", "costs"]) $(id).replaceChildren();
  $("label").textContent = "…";
  for (const id of ["certainty", "count", "name"]) $(id).textContent = "";
  $("report").hidden = $("zoom").hidden = $("scale").hidden = true;
  $("images").classList.remove("open");
  $("drawer").setAttribute("aria-expanded", "false");
  tell();
}

async function open(name) {
  clear();
  state.name = name;
  $("name").textContent = name;
  current();
  try {
    const about = await ask(`/v1/image?${new URLSearchParams({ path: name })}`);
    if (state.name !== name) return;
    state.about = about;
    viewer.open({
      width: about.width,
      height: about.height,
      tileSize: about.tile,
      tileOverlap: 0,
      minLevel: Math.min(6, about.levels - 1),
      maxLevel: about.levels - 1,
      getTileUrl: (level, x, y) => `/v1/tile/${level}/${x}/${y}?${new URLSearchParams({ path: name, v: about.version })}`,
    });
    showName();
    await classify();
  } catch (error) {
    if (state.name === name) tell(error.message);
  }
}

async function openFile(file) {
  clear();
  state.file = file;
  $("name").textContent = file.name;
  current();
  const address = URL.createObjectURL(file);
  state.urls.push(address);
  const picture = new Image();
  picture.src = address;
  try {
    await picture.decode();
    if (state.file !== file) return;
    state.about = { width: picture.naturalWidth, height: picture.naturalHeight, picture };
    viewer.open({ type: "image", url: address, buildPyramid: false });
    showName();
  } catch {
    tell("the browser cannot show this format; the answer is at the side");
  }
  await classify();
}

function showName() {
  const { width, height, mpp } = state.about;
  const scale = mpp ? `, ${mpp >= 1e5 ? `${round(mpp / 1e6)} m` : `${round(mpp)} µm`} per pixel` : "";
  $("name").textContent = `${state.name ?? state.file.name} · ${width.toLocaleString("en")} × ${height.toLocaleString("en")} px${scale}`;
}

// ---- settings

function settings() {
  const chosen = {};
  const levels = [...document.querySelectorAll("[data-level]")].map((one) => Number(one.value));
  if (levels.length) chosen.locations = levels.join(",");
  const sure = $("sure");
  if (sure && Number(sure.value) < 100) chosen.stop_at = String(Number(sure.value) / 100);
  const budget = $("budget") && state.model.budgets[Number($("budget").value)];
  if (budget) {
    delete chosen.stop_at;
    Object.assign(chosen, { budget: budget.budget, locations: budget.locations.join(",") });
  }
  return chosen;
}

function slider(id, text, least, most, value, show, more) {
  const output = element("output");
  const input = element("input", { type: "range", id, min: String(least), max: String(most), step: "1", ...more });
  input.value = String(value);
  const tellValue = () => (output.textContent = show(Number(input.value)));
  input.addEventListener("input", () => {
    tellValue();
    later();
  });
  tellValue();
  $("sliders").append(element("label", {}, text, output, input));
  return input;
}

function makeSliders() {
  const { locations, most_cells, most_levels, budgets } = state.model;
  if (most_levels === 0 || !locations.length) return;
  locations.forEach((value, i) => {
    const most = Math.min(most_cells ?? Infinity, Math.max(12, 4 * value));
    const text = locations.length > 1 ? `Looks per grid, level ${i + 2}` : "Looks";
    slider(`level${i + 2}`, text, i ? 1 : 0, most, value, String, { "data-level": String(i + 2) });
  });
  if (budgets.length)
    slider("budget", "Budget: mean cost of an image", 0, budgets.length, budgets.length, (i) => budgets[i]?.budget ?? "none");
  slider("sure", "Stop when sure", 50, 100, 100, (value) => (value < 100 ? `from ${value} %` : "never"));
}

let waiting = 0;
function later() {
  clearTimeout(waiting);
  waiting = setTimeout(classify, 250);
}

// ---- classification, look by look

async function classify() {
  if (!state.name && !state.file) return;
  state.classifying?.abort();
  const mine = (state.classifying = new AbortController());
  const form = new FormData(), chosen = settings();
  if (state.file) form.set("image", state.file);
  else form.set("path", state.name);
  for (const [name, value] of Object.entries(chosen)) form.set(name, value);
  $("result").parentElement.classList.add("busy");
  try {
    const response = await fetch("/v1/classify/stream", { method: "POST", body: form, signal: mine.signal });
    if (!response.ok) throw new Error(says(response, await response.json().catch(() => null)));
    let shown = [];
    for await (const [kind, data] of events(response)) {
      if (kind === "error") throw new Error(data.detail);
      if (kind === "look") {
        shown = data.turn ? [...shown, ...data.looks.map((look) => ({ ...look, level: 2 }))] : [];
        showClass(data);
        drawBoxes(shown, shown.length - (data.turn ? data.looks.length : 0));
      } else showAnswer(data, shown.length);
    }
    tell();
    remember(chosen);
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
  }
  if (state.classifying === mine) $("result").parentElement.classList.remove("busy");
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const [, kind, data] = part.match(/^event: (.*)\ndata: (.*)$/s);
      yield [kind, JSON.parse(data)];
    }
  }
}

function remember(chosen) {
  if (!state.name) return;
  const own = state.model.locations.join(",");
  const kept = { path: state.name, ...(chosen.locations && chosen.locations !== own ? { locations: chosen.locations } : {}) };
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
  $("report").href = `/v1/report?${new URLSearchParams({ path: state.name, ...(chosen.locations ? { locations: chosen.locations } : {}) })}`;
  $("report").hidden = false;
}

// ---- the answer

const round = (value) => (Math.abs(value) >= 100 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3))));
const amount = (value, unit) => {
  const at = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]].find(([least]) => value >= least) ?? [1, ""];
  return `${round(value / at[0])} ${at[1]}${unit}`;
};
const colour = (level) => state.model.colours[(level - 1) % state.model.colours.length];
const percent = (p) => `${(100 * p).toFixed(1)} %`;

function showClass({ label, probability, top_k }) {
  $("label").textContent = label || "no label";
  $("certainty").textContent = percent(probability);
  $("classes").replaceChildren(
    ...top_k.map((one) =>
      element("li", {},
        element("span", { class: "what", title: one.label }, one.label),
        element("span", { class: "track" }, element("i", { style: { width: percent(one.probability).replace(" ", "") } })),
        element("span", { class: "number" }, percent(one.probability)))));
}

function showAnswer(answer, before) {
  state.answer = answer;
  state.chosen = null;
  showClass(answer);
  const looks = answer.glimpses;
  $("count").textContent = `${looks.length}`;
  $("hint").hidden = looks.every((look) => look.contribution == null);
  const cost = [
    ["looks", String(looks.length)],
    ["computation", amount(answer.macs, "MAC")],
    ...(answer.bytes_read == null ? [] : [["read", amount(answer.bytes_read, "B")]]),
    ["time", answer.seconds < 1 ? `${Math.round(1000 * answer.seconds)} ms` : `${round(answer.seconds)} s`],
  ];
  $("costs").replaceChildren(...cost.map(([what, value]) => element("div", {}, element("dt", {}, what), element("dd", {}, value))));
  const largest = Math.max(...looks.map((look) => Math.abs(look.contribution ?? 0))) || 1;
  $("looks").replaceChildren(...looks.map((look, i) => card(look, i, largest)));
  drawBoxes(looks, before + 1);
}

function card(look, number, largest) {
  const [y0, x0, y1, x1] = look.box.map(Math.round);
  const value = look.contribution, half = (50 * Math.abs(value ?? 0)) / largest;
  const parent = look.parent == null ? "" : `, chosen in look ${look.parent}`;
  const chance = number ? ` with probability ${look.probability.toFixed(3)}` : "the first look, always taken";
  const picture = element("img", { alt: `what the model saw in look ${number}`, loading: "lazy" });
  sawIn(look).then((address) => address && (picture.src = address));
  const made = element("article", { class: "look", tabindex: "0", "data-look": String(number), style: { "--level": colour(look.level) } },
    picture,
    element("div", {},
      element("h3", {}, element("b", {}, String(number)), `level ${look.level}`,
        element("span", {}, value == null ? "" : `${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(3)}`)),
      ...(value == null ? [] : [element("ul", { class: "bars" }, element("li", {},
        element("span", { class: "track signed" }, element("i", { class: value >= 0 ? "more" : "less", style: { left: `${value >= 0 ? 50 : 50 - half}%`, width: `${half}%` } }))))]),
      element("p", {}, `${chance.replace(/^ /, "chosen ").replace("chosen with", "chosen with")}${parent.replace(", chosen", "")}`),
      element("p", {}, `rows ${y0} to ${y1}, columns ${x0} to ${x1}${look.mpp ? `, ${round(look.mpp)} µm per pixel` : ""}`)));
  made.addEventListener("click", () => choose(number, true));
  made.addEventListener("keydown", (event) => event.key === "Enter" && choose(number, true));
  return made;
}

// What the model saw: cut by the service from its file, or by the browser from an image that was opened here.
async function sawIn(look) {
  if (state.name) {
    const size = look.size ? { size: look.size.join(",") } : {};
    return `/v1/look?${new URLSearchParams({ path: state.name, box: look.box.join(","), ...size })}`;
  }
  if (!state.about) return null;
  const [y0, x0, y1, x1] = look.box, canvas = element("canvas", { width: 256, height: 256 });
  canvas.getContext("2d").drawImage(state.about.picture, x0, y0, x1 - x0, y1 - y0, 0, 0, 256, 256);
  const blob = await new Promise((done) => canvas.toBlob(done));
  const address = URL.createObjectURL(blob);
  state.urls.push(address);
  return address;
}

// ---- boxes

function whenOpen(then) {
  if (viewer.world.getItemCount()) then();
  else viewer.addOnceHandler("open", then);
}

function drawBoxes(looks, fresh) {
  if (!state.about) return;
  const about = state.about;
  whenOpen(() => {
    if (state.about !== about) return;
    viewer.clearOverlays();
    const whole = looks.length && looks[0].level === 1;
    looks.forEach((look, i) => {
      const number = whole ? i : i + 1;
      if (look.level === 1) return; // the whole image
      const [y0, x0, y1, x1] = look.box;
      const spot = element("div", { class: `spot${number >= fresh ? " new" : ""}`, tabindex: "-1", role: "button", "data-look": String(number), "aria-label": `look ${number}`, style: { "--level": colour(look.level) } }, element("b", {}, String(number)));
      new OpenSeadragon.MouseTracker({ element: spot, clickHandler: (event) => event.quick && choose(number, false) });
      viewer.addOverlay({ element: spot, location: viewer.world.getItemAt(0).imageToViewportRectangle(x0, y0, x1 - x0, y1 - y0) });
    });
  });
}

function choose(number, moves) {
  const looks = state.answer?.glimpses ?? [];
  state.chosen = number != null && number >= 0 && number < looks.length ? number : null;
  for (const part of document.querySelectorAll("[data-look]")) {
    const here = part.dataset.look === String(state.chosen);
    part.classList.toggle("chosen", here);
    if (here && part.matches(".look")) part.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }
  const item = viewer.world.getItemAt(0);
  if (state.chosen == null || !moves || !item) return;
  const [y0, x0, y1, x1] = looks[state.chosen].box, room = looks[state.chosen].level === 1 ? 0 : 0.6;
  const [h, w] = [y1 - y0, x1 - x0];
  viewer.viewport.fitBounds(item.imageToViewportRectangle(x0 - room * w, y0 - room * h, w * (1 + 2 * room), h * (1 + 2 * room)));
}

// ---- zoom

const zooms = {
  in: () => viewer.viewport.zoomBy(1.6),
  out: () => viewer.viewport.zoomBy(1 / 1.6),
  home: () => viewer.viewport.goHome(),
  native: () => {
    const item = viewer.world.getItemAt(0);
    if (item) viewer.viewport.zoomTo(item.imageToViewportZoom(1 / window.devicePixelRatio));
  },
};
for (const button of document.querySelectorAll("[data-zoom]"))
  button.addEventListener("click", () => {
    zooms[button.dataset.zoom]();
    viewer.viewport.applyConstraints();
  });
viewer.addHandler("open", () => ($("zoom").hidden = $("scale").hidden = false));
viewer.addHandler("open-failed", (event) => tell(event.message));
viewer.addHandler("tile-load-failed", (event) => event.message && !/abort/i.test(event.message) && checkTile(event.tile));
viewer.addHandler("update-viewport", () => {
  const item = viewer.world.getItemAt(0);
  if (!item) return;
  const zoom = item.viewportToImageZoom(viewer.viewport.getZoom(true)) * window.devicePixelRatio;
  $("scale").textContent = `${round(100 * zoom)} %`;
});

let checked = null; // one question for each damaged image
async function checkTile(tile) {
  if (checked === state.about) return;
  checked = state.about;
  try {
    await ask(tile.getUrl());
  } catch (error) {
    if (checked === state.about) tell(error.message);
  }
}

// ---- keys and buttons

function step(by) {
  const at = state.names.indexOf(state.name) + by;
  if (state.names[at]) open(state.names[at]);
}

function flipTheme() {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", document.documentElement.dataset.theme);
}

function flipBoxes() {
  const hidden = $("viewer").classList.toggle("plain");
  $("boxes").setAttribute("aria-pressed", String(!hidden));
}

const keys = {
  ArrowUp: () => step(-1),
  ArrowDown: () => step(1),
  ArrowLeft: () => choose(state.chosen == null ? (state.answer?.glimpses.length ?? 0) - 1 : Math.max(0, state.chosen - 1), true),
  ArrowRight: () => choose(state.chosen == null ? 0 : Math.min(state.answer.glimpses.length - 1, state.chosen + 1), true),
  "+": zooms.in, "=": zooms.in, "-": zooms.out, 0: zooms.home, 1: zooms.native,
  b: flipBoxes,
  d: flipTheme,
  Escape: () => choose(null),
  "/": () => $("search").focus(),
  "?": () => $("keys").showModal(),
};
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea") || $("keys").open;
  if (typing) {
    if (event.key === "Escape" && event.target.matches("input")) event.target.blur();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});
$("theme").addEventListener("click", flipTheme);
$("boxes").addEventListener("click", flipBoxes);
$("help").addEventListener("click", () => $("keys").showModal());
$("drawer").addEventListener("click", () => $("drawer").setAttribute("aria-expanded", String($("images").classList.toggle("open"))));
$("more").addEventListener("click", () => list(true).catch((error) => tell(error.message)));
let typed = 0;
$("search").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(() => list().catch((error) => tell(error.message)), 200);
});
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("upload").addEventListener("change", () => {
  if ($("upload").files[0]) openFile($("upload").files[0]);
  $("upload").value = "";
});
const stage = document.querySelector("main");
for (const kind of ["dragenter", "dragover"])
  stage.addEventListener(kind, (event) => {
    event.preventDefault();
    stage.classList.add("over");
  });
for (const kind of ["dragleave", "drop"]) stage.addEventListener(kind, () => stage.classList.remove("over"));
stage.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files[0]) openFile(event.dataTransfer.files[0]);
});

// ---- start

(async () => {
  try {
    state.model = await ask("/v1/model");
    const { name, model, classes } = state.model;
    document.title = `${name} · foveal`;
    $("model").textContent = name;
    $("about").textContent = `${model}, ${classes.length} classes`;
    makeSliders();
    await list();
    const asked = new URLSearchParams(location.hash.slice(1));
    (asked.get("locations") ?? "").split(",").forEach((value, i) => {
      const input = $(`level${i + 2}`);
      if (input && value) {
        input.value = value;
        input.dispatchEvent(new Event("input"));
      }
    });
    const first = asked.get("path") ?? state.names[0];
    if (first) await open(first);
    else tell(state.model.images ? "the folder has no images; open a file" : "open a file to classify it");
  } catch (error) {
    tell(error.message);
  }
})();
