// The page: it embeds files with the model that build.py puts beside it, and sorts shapes by their cosines.
import * as ort from "./onnxruntime/ort.wasm.min.mjs";
import { SUFFIXES, readFile, suffixOf } from "./readers.js";
import { modelInput, pointsOf, toUpAxis, torchPermutation } from "./sampling.js";

const MAX_DRAWN = 20000, MAX_CARDS = 60, MAX_ERRORS = 5;
const COLORS = ["#3a58d8", "#7e5cd4", "#d65496", "#f58956", "#fad05e"]; // by height, as in other pages of the project
const element = (id) => document.getElementById(id);
const shapes = new Map(); // name -> {name, points, input, vector, readTime, modelTime}
let settings, session, chosen;

// The model ----------------------------------------------------------------------------------------------------------

async function load(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} is not there: the server answers ${response.status}`);
  return response;
}

async function start() {
  settings = await (await load("settings.json")).json();
  const model = await (await load("model.onnx")).arrayBuffer();
  ort.env.wasm.numThreads = 1; // more need headers that a plain file host does not send
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  await embed(new Float32Array(3 * settings.num_points).map((_, i) => Math.sin(i))); // the first run is slower
  element("up").hidden = !settings.up_axis;
  element("up-axis").value = settings.up_axis;
  element("load-samples").hidden = !settings.sample_files.length;
  say(`The model ${settings.model} is ready.`);
}

// The unit vector of points that `modelInput` prepared: the mean of the vectors of all selections.
async function embed(input) {
  const samples = input.length / 3 / settings.num_points;
  const points = new ort.Tensor("float32", input, [samples, settings.num_points, 3]);
  const { embedding } = await session.run({ points }, ["embedding"]);
  const width = embedding.data.length / samples, sum = new Float32Array(width);
  embedding.data.forEach((value, place) => { sum[place % width] += value; });
  const length = Math.hypot(...sum);
  return sum.map((value) => value / length);
}

async function embedShape(shape) {
  shape.input = modelInput(shape.points, settings, element("up-axis").value);
  const begin = performance.now();
  shape.vector = await embed(shape.input);
  shape.modelTime = performance.now() - begin;
}

const cosine = (first, second) => first.vector.reduce((sum, value, i) => sum + value * second.vector[i], 0);

// Files --------------------------------------------------------------------------------------------------------------

// `files` are {name, read}; `read` promises the bytes.
async function addFiles(files) {
  const readable = files.filter(({ name }) => SUFFIXES.includes(suffixOf(name)))
    .sort((first, second) => (first.name < second.name ? -1 : 1));
  const others = files.filter((file) => !readable.includes(file)), errors = [];
  if (others.length) {
    const names = others.slice(0, 3).map(({ name }) => name).join(", ") + (others.length > 3 ? ", ..." : "");
    errors.push(`${names}: expected files that end in .${SUFFIXES.join(", .")}`);
  }
  let drawn = 0;
  for (const [place, { name, read }] of readable.entries()) {
    say(`Embedding ${place + 1} of ${readable.length}: ${name}`);
    try {
      const bytes = await read(), begin = performance.now();
      const shape = { name, points: pointsOf(readFile(name, bytes)), readTime: performance.now() - begin };
      await embedShape(shape);
      shapes.set(name, shape);
      chosen ??= name;
    } catch (error) {
      errors.push(`${name}: ${error.message}`);
    }
    if (performance.now() - drawn > 2000) {
      show();
      drawn = performance.now();
    }
    await new Promise((resolve) => setTimeout(resolve)); // the page stays alive
  }
  report(errors);
  show();
}

async function filesOfEntry(entry, path = "") {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ name: path + entry.name, read: () => file.arrayBuffer() }];
  }
  const reader = entry.createReader(), files = [];
  for (;;) { // a call returns some of the entries
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return files;
    for (const child of entries) files.push(...await filesOfEntry(child, `${path}${entry.name}/`));
  }
}

const isVisible = ({ name }) => !name.split("/").pop().startsWith("."); // what systems put into folders

function listInput(input) {
  const files = [...input.files].map((file) =>
    ({ name: file.webkitRelativePath || file.name, read: () => file.arrayBuffer() }));
  input.value = ""; // so that the same file can be chosen again
  return files;
}

// What the user sees -------------------------------------------------------------------------------------------------

function say(text) { element("status").textContent = text; }

function report(errors) {
  const lines = errors.slice(0, MAX_ERRORS);
  if (errors.length > MAX_ERRORS) lines.push(`and ${errors.length - MAX_ERRORS} more files`);
  element("errors").replaceChildren(...lines.map((line) =>
    Object.assign(document.createElement("p"), { textContent: line })));
}

const base64 = (array) => {
  const bytes = new Uint8Array(array.buffer);
  let text = "";
  for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
  return btoa(text);
};

// A cloud as viewer.js takes it: y up, colored by height.
function pack(name, cloud, upAxis, caption) {
  const total = cloud.length / 3, drawn = Math.min(total, MAX_DRAWN), target = settings.up_axis && "y";
  const order = total > drawn ? torchPermutation(total) : null, points = new Float64Array(3 * drawn);
  for (let i = 0; i < drawn; i++) {
    const start = 3 * (order ? order[i] : i);
    points.set(toUpAxis(cloud.subarray(start, start + 3), upAxis, target), 3 * i);
  }
  const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
  for (let i = 0; i < 3 * drawn; i++) {
    low[i % 3] = Math.min(low[i % 3], points[i]);
    high[i % 3] = Math.max(high[i % 3], points[i]);
  }
  const center = low.map((value, axis) => (value + high[axis]) / 2);
  let radius = 1e-30;
  for (let i = 0; i < 3 * drawn; i += 3) {
    radius = Math.max(radius, Math.hypot(...center.map((value, axis) => points[i + axis] - value)));
  }
  const places = new Int16Array(3 * drawn), colors = new Uint8Array(3 * drawn);
  for (let i = 0; i < drawn; i++) {
    for (let axis = 0; axis < 3; axis++) {
      places[3 * i + axis] = Math.round((points[3 * i + axis] - center[axis]) / radius * 32767);
    }
    colors.set(colorOf((points[3 * i + 1] - low[1]) / Math.max(high[1] - low[1], 1e-30)), 3 * i);
  }
  return { name, caption, points: base64(places), colors: base64(colors), drawn, total, center, radius };
}

function colorOf(height) {
  const place = Math.min(height * (COLORS.length - 1), COLORS.length - 1.001), below = Math.floor(place);
  const channel = (color, i) => parseInt(color.slice(1 + 2 * i, 3 + 2 * i), 16);
  const mix = (i) => channel(COLORS[below], i) * (1 - place + below) + channel(COLORS[below + 1], i) * (place - below);
  return [0, 1, 2].map(mix);
}

const labelOf = (name) => name.replace(/^[^/]+\//, ""); // without the dropped folder
const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

function show() {
  const shape = shapes.get(chosen);
  element("shapes").hidden = !shape;
  if (!shape) return;
  const all = [...shapes.values()];
  const times = all.map(({ modelTime }) => modelTime);
  say(`${all.length} ${all.length === 1 ? "shape" : "shapes"}, ${milliseconds(median(times))} each in the model`);
  actViewer(element("chosen"), [pack(labelOf(shape.name), shape.points, element("up-axis").value)],
    { one: true, turned: Boolean(settings.up_axis) });
  element("timing").textContent =
    `Read in ${milliseconds(shape.readTime)}, embedded in ${milliseconds(shape.modelTime)} ` +
    `from ${settings.samples} times ${settings.num_points} of its points.`;
  const others = all.filter((other) => other !== shape).map((other) => ({ other, value: cosine(shape, other) }));
  const nearest = others.sort((a, b) => b.value - a.value).slice(0, MAX_CARDS);
  element("heading").textContent = !others.length ? "Drop more shapes to see which are alike"
    : `Most like ${labelOf(shape.name)}` + (others.length > MAX_CARDS ? ` (${MAX_CARDS} of ${others.length})` : "");
  const cards = nearest.map(({ other, value }) => pack(labelOf(other.name), other.input.subarray(0, 3 * settings.num_points), settings.up_axis, `cosine ${value.toFixed(3)}`));
  actViewer(element("nearest"), cards, { onOpen: (place) => choose(nearest[place].other.name) });
  element("nearest").scrollTop = 0;
}

function choose(name) {
  chosen = name;
  show();
  element("chosen").querySelector("canvas").focus();
}

function download() {
  const vectors = [...shapes.values()].map(({ name, vector }) => ({ name, vector: [...vector] }));
  const { model, num_points } = settings, up_axis = settings.up_axis && element("up-axis").value;
  const blob = new Blob([JSON.stringify({ model, num_points, up_axis, vectors })], { type: "application/json" });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: "vectors.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Events -------------------------------------------------------------------------------------------------------------

function fail(error) {
  say("");
  report([error.message ?? String(error)]);
}

const ready = start().catch((error) => { throw new Error(`The model cannot be loaded: ${error.message ?? error}`); });
ready.catch(fail);
let work = ready; // one drop after the other
const queue = (task) => { work = work.then(() => ready).then(task).catch(fail); };

for (const [button, input] of [["choose-files", "files"], ["choose-folder", "folder"]]) {
  element(button).onclick = () => element(input).click();
  element(input).onchange = () => {
    const files = listInput(element(input)).filter(isVisible);
    queue(() => addFiles(files));
  };
}
element("choose-folder").hidden = !("webkitdirectory" in element("folder")) || matchMedia("(pointer: coarse)").matches;
element("load-samples").onclick = () => queue(() => addFiles(settings.sample_files.map((name) =>
  ({ name, read: async () => (await load(`samples/${name}`)).arrayBuffer() }))));
element("up-axis").onchange = () => queue(async () => {
  for (const shape of shapes.values()) await embedShape(shape);
  show();
});
element("clear").onclick = () => queue(() => {
  shapes.clear();
  chosen = undefined;
  report([]);
  say("No shapes.");
  show();
});
element("download").onclick = download;

addEventListener("dragover", (event) => {
  event.preventDefault();
  element("drop").classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) element("drop").classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  // Entries must be taken at once: the event's data are gone afterwards.
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = [...event.dataTransfer.files].map((file) => ({ name: file.name, read: () => file.arrayBuffer() }));
  queue(async () => {
    const listed = entries.length ? (await Promise.all(entries.map((entry) => filesOfEntry(entry)))).flat() : files;
    await addFiles(listed.filter(isVisible));
  });
});

element("suffixes").textContent = `.${SUFFIXES.join(" .")}`;
