"""What a cloud's viewer is in the browser: its style, its script and the page around them; viewer.py fills it in.

The script draws all clouds of a page with one WebGL context, or on plain canvases where there is none.
"""

VIEWER_STYLE = """
.act-clouds { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(260px, 100%), 1fr));
  position: relative; }
.act-clouds figure { margin: 0; min-width: 0; }
.act-clouds canvas { display: block; width: 100%; aspect-ratio: 1; cursor: grab;
  touch-action: pan-y; border-radius: 10px; outline-offset: -2px; }
.act-clouds canvas:active { cursor: grabbing; }
.act-clouds canvas:focus-visible { outline: 2px solid #6f8cff; }
.act-clouds.act-one canvas { touch-action: none; aspect-ratio: auto;
  height: min(var(--act-height, 70vh), 120vw); }
.act-clouds.act-pickable canvas { cursor: pointer; }
.act-clouds figcaption { font-size: .85rem; line-height: 1.45; padding: 6px 2px 0; overflow-wrap: anywhere; }
.act-clouds .act-quiet { opacity: .68; }
.act-clouds .act-readout { font-variant-numeric: tabular-nums; }
.act-clouds.act-one .act-readout { min-height: 1.45em; }
.act-clouds .act-legend { display: flex; flex-wrap: wrap; gap: 2px 14px; max-height: 7.5em; overflow-y: auto; }
.act-clouds .act-legend i { display: inline-block; width: .75em; height: .75em; border-radius: 50%;
  margin-right: .4em; }
.act-clouds .act-scale { display: flex; align-items: center; gap: 8px; font-variant-numeric: tabular-nums; }
.act-clouds .act-scale i { flex: 1; max-width: 240px; height: .6em; border-radius: .3em; }
.act-clouds .act-tools { position: absolute; top: 8px; right: 8px; display: flex; gap: 4px; z-index: 1; }
.act-clouds .act-tools button { font: 600 13px/1 system-ui, sans-serif; min-width: 34px; height: 34px; padding: 0 9px;
  color: inherit; background: #8881; border: 1px solid #8884; border-radius: 8px; cursor: pointer; }
.act-clouds .act-tools button:hover { background: #8883; }
"""

# actViewer(root, clouds, {onPick, onOpen, one}) fills `root` with what `pack_clouds` gave. `one` makes a large viewer
# with buttons; onPick(point, cloud) is told of clicked points; onOpen(cloud) makes each picture a button.
VIEWER_SCRIPT = r"""
globalThis.actViewer ??= (() => {
"use strict";
const DISTANCE = 4; // of the eye from the center of a cloud, which fills the unit ball

// Everything that came from outside enters the page as a text node, through here.
function make(tag, options, ...children) {
  const node = Object.assign(document.createElement(tag), options);
  node.append(...children);
  return node;
}

const decode = (text, Kind) => new Kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
const show = (value) => Number(value.toPrecision(4)).toString();

// Drawing ------------------------------------------------------------------------------------------------------------

const VERTEX = `attribute vec3 position; attribute vec3 color; uniform mat3 turn; uniform vec2 unit, shift;
uniform float size; varying vec3 tint; varying float roundness;
void main() {
  vec3 place = turn * position; // z towards the eye
  float away = ${DISTANCE}.0 - place.z;
  gl_Position = vec4(place.xy * unit * ${DISTANCE}.0 + shift * away, -0.5 * place.z * away, away);
  gl_PointSize = size * ${DISTANCE}.0 / away;
  roundness = clamp((gl_PointSize - 2.0) / 8.0, 0.0, 1.0); // as far as one can see it
  tint = color * (0.88 + 0.12 * place.z); // what lies behind is darker
}`;
const FRAGMENT = `precision mediump float; varying vec3 tint; varying float roundness;
void main() {
  vec2 at = 2.0 * gl_PointCoord - 1.0;
  float inside = 1.0 - dot(at, at);
  if (inside < 0.0) discard;
  vec3 normal = vec3(at.x, -at.y, sqrt(inside)); // each point is a little ball, lit from above
  float light = 0.75 + 0.35 * max(0.0, dot(normal, vec3(-0.3, 0.6, 0.74)));
  gl_FragColor = vec4(tint * mix(1.0, light, roundness), 1.0);
}`;

let renderer; // of all clouds of the page; null where the browser has no WebGL
function makeRenderer() {
  const canvas = document.createElement("canvas");
  const gl = canvas.getContext("webgl", { antialias: false, preserveDrawingBuffer: true });
  if (!gl) return null;
  canvas.addEventListener("webglcontextlost", () => { renderer = null; });
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return null;
  gl.useProgram(program);
  gl.enable(gl.DEPTH_TEST);
  const uniform = (name) => gl.getUniformLocation(program, name);
  const [turn, unit, shift, size] = ["turn", "unit", "shift", "size"].map(uniform);
  const columns = [["position", "points", gl.SHORT], ["color", "colors", gl.UNSIGNED_BYTE]].map(([name, key, kind]) =>
    ({ key, kind, place: gl.getAttribLocation(program, name), buffer: gl.createBuffer() }));
  columns.forEach((column) => gl.enableVertexAttribArray(column.place));
  let held = null; // the cloud that the buffers hold
  return (panel, camera) => {
    const { width, height } = panel.canvas;
    if (canvas.width < width) canvas.width = width;
    if (canvas.height < height) canvas.height = height;
    gl.viewport(0, canvas.height - height, width, height); // its upper left corner is the picture's
    for (const column of held === panel ? [] : columns) {
      gl.bindBuffer(gl.ARRAY_BUFFER, column.buffer);
      gl.bufferData(gl.ARRAY_BUFFER, panel[column.key], gl.STATIC_DRAW);
      gl.vertexAttribPointer(column.place, 3, column.kind, true, 0, 0);
    }
    held = panel;
    gl.uniformMatrix3fv(turn, false, camera.turn);
    gl.uniform2f(unit, 2 * camera.unit / width, 2 * camera.unit / height);
    gl.uniform2f(shift, 2 * camera.right / width, -2 * camera.down / height);
    gl.uniform1f(size, 2 * camera.dot);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.drawArrays(gl.POINTS, 0, panel.count);
    panel.context.drawImage(canvas, 0, 0, width, height, 0, 0, width, height);
  };
}

function drawPlainly(panel, camera) {
  const places = Array.from({ length: panel.count }, (_, i) => [...panel.place(camera, i), i]);
  for (const [x, y, depth, i] of places.sort((a, b) => a[2] - b[2])) {
    const radius = camera.dot * DISTANCE / (DISTANCE - depth);
    panel.context.fillStyle = `rgb(${panel.colors.slice(3 * i, 3 * i + 3)})`;
    panel.context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
  }
}

// What one view looks like in one picture; lengths in its pixels, `turn` in columns.
function cameraOf(panel, view) {
  const { width, height } = panel.canvas, side = Math.min(width, height);
  const [cosYaw, sinYaw, cosPitch, sinPitch] = [Math.cos(view.yaw), Math.sin(view.yaw), Math.cos(view.pitch),
    Math.sin(view.pitch)];
  const x = [cosYaw, sinYaw * sinPitch, -sinYaw * cosPitch], y = [0, cosPitch, sinPitch];
  const z = [sinYaw, -cosYaw * sinPitch, cosYaw * cosPitch];
  const turn = view.zUp ? [...x, ...z.map((value) => -value), ...y] : [...x, ...y, ...z];
  return { turn, unit: 0.46 * side * view.zoom * panel.fit, right: view.right * side, down: view.down * side,
    dot: Math.max(0.8, view.dot * Math.min(0.011, 0.5 / Math.sqrt(panel.count)) * side * view.zoom ** 0.75) };
}

// One picture --------------------------------------------------------------------------------------------------------

function makePanel(cloud) {
  const panel = {
    cloud, count: cloud.drawn, fit: 1, canvas: make("canvas", { tabIndex: 0 }), picked: null,
    points: decode(cloud.points, Int16Array), colors: decode(cloud.colors, Uint8Array),
    // x, y in pixels and the depth towards the eye
    place(camera, i) {
      const [a, b, c] = [0, 1, 2].map((axis) => panel.points[3 * i + axis] / 32767);
      const t = camera.turn, depth = t[2] * a + t[5] * b + t[8] * c;
      const scale = camera.unit * DISTANCE / (DISTANCE - depth);
      return [panel.canvas.width / 2 + camera.right + scale * (t[0] * a + t[3] * b + t[6] * c),
        panel.canvas.height / 2 + camera.down - scale * (t[1] * a + t[4] * b + t[7] * c), depth];
    },
    resize() {
      const ratio = Math.min(2, devicePixelRatio), { canvas } = panel;
      canvas.width = Math.round(canvas.clientWidth * ratio);
      canvas.height = Math.round(canvas.clientHeight * ratio);
      return ratio;
    },
    draw(view) {
      const { canvas } = panel, ratio = panel.resize();
      if (!canvas.width || !canvas.height) return; // in a tab that is not open
      panel.context = canvas.getContext("2d");
      const camera = cameraOf(panel, view);
      if (renderer === undefined) renderer = makeRenderer();
      canvas.dataset.drawnBy = renderer ? "webgl" : "canvas";
      (renderer ?? drawPlainly)(panel, camera);
      if (panel.picked === null) return;
      const [x, y] = panel.place(camera, panel.picked), radius = Math.max(7 * ratio, 1.6 * camera.dot);
      for (const [color, width] of [["#000", 5], ["#fff", 2.5]]) {
        panel.context.beginPath();
        panel.context.arc(x, y, radius, 0, 2 * Math.PI);
        Object.assign(panel.context, { strokeStyle: color, lineWidth: width * ratio / 1.5 });
        panel.context.stroke();
      }
    },
    // The foremost point under the pointer, or else the nearest within a finger's width; null where there is none.
    pick(view, clientX, clientY) {
      const box = panel.canvas.getBoundingClientRect(), ratio = panel.canvas.width / box.width;
      const [x, y] = [(clientX - box.left) * ratio, (clientY - box.top) * ratio], camera = cameraOf(panel, view);
      let best = null, least = 22 * ratio;
      for (let i = 0; i < panel.count; i++) {
        const [px, py, depth] = panel.place(camera, i), off = Math.hypot(px - x, py - y);
        const cost = Math.max(off, 1.3 * camera.dot) - 6 * ratio * depth;
        if (off < 22 * ratio && cost < least) [best, least] = [i, cost];
      }
      return best;
    },
    describe(i) {
      const step = 10 ** Math.floor(Math.log10(cloud.radius) - 3.5); // no digits that the packing made up
      const at = cloud.center.map((middle, axis) => {
        const value = panel.points[3 * i + axis] / 32767 * cloud.radius + middle;
        return Number((Math.round(value / step) * step).toPrecision(9)).toString();
      });
      const what = cloud.labels ? cloud.legend[decode(cloud.labels, Uint32Array)[i]][0]
        : cloud.values ? show(decode(cloud.values, Float32Array)[i]) : null;
      const number = cloud.drawn === cloud.total ? `point ${i}` : "point";
      return [number, `(${at.join(", ")})`, what].filter(Boolean).join("  ");
    },
  };
  panel.canvas.setAttribute("role", "img");
  panel.canvas.setAttribute("aria-label", `point cloud ${cloud.name}`);
  return panel;
}

function makeCaption(cloud, readout) {
  const count = cloud.drawn.toLocaleString("en-US"), total = cloud.total.toLocaleString("en-US");
  const number = cloud.drawn < cloud.total ? `${count} of ${total} points` : `${count} points`;
  const name = cloud.name.replace(/[/_]/g, "$&\u200b"); // a long one may go on in the next line
  const caption = make("figcaption", {}, make("b", {}, name), " ",
    make("span", { className: "act-quiet" }, cloud.caption ?? number), readout);
  if (cloud.legend) caption.append(make("div", { className: "act-legend" }, ...cloud.legend.map(([name, color]) => {
    const dot = make("i");
    dot.style.background = color;
    return make("span", {}, dot, name);
  })));
  if (cloud.scale) {
    const [low, high, colors] = cloud.scale, bar = make("i");
    bar.style.background = `linear-gradient(90deg, ${colors.join(", ")})`;
    caption.append(make("div", { className: "act-scale act-quiet" }, show(low), bar, show(high)));
  }
  return caption;
}

// All pictures of one view -------------------------------------------------------------------------------------------

const HOME = { yaw: 0.6, pitch: 0.35, zoom: 1, right: 0, down: 0, dot: 1, zUp: false };

return function actViewer(root, clouds, options = {}) {
  const shape = clouds.map((cloud) => cloud.points).join(); // other colors of the same points keep the view
  const kept = root.actShape === shape;
  const view = root.actView = kept ? root.actView : { ...HOME, zUp: root.actView?.zUp ?? false };
  root.actShape = shape;
  root.actObserver?.disconnect();
  const panels = clouds.map(makePanel);
  panels.forEach((panel, i) => { panel.fit = view.fits?.[i] ?? 1; });
  let waiting = false;
  const draw = () => {
    if (!waiting) requestAnimationFrame(() => {
      waiting = false;
      if (!view.fits && panels.every((panel) => panel.resize() && panel.canvas.width)) fit();
      panels.forEach((panel) => panel.draw(view));
    });
    waiting = true;
  };
  function change(values) {
    Object.assign(view, values);
    view.pitch = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, view.pitch));
    view.zoom = Math.max(0.3, Math.min(20, view.zoom));
    view.dot = Math.max(0.2, Math.min(5, view.dot));
    draw();
  }
  // As large as the pictures allow, seen from there.
  function fit() {
    Object.assign(view, { ...HOME, zUp: view.zUp });
    const fits = panels.map((panel) => {
      panel.fit = 1;
      const { width, height } = panel.canvas, camera = cameraOf(panel, view);
      let most = 1e-9;
      for (let i = 0; i < panel.count; i++) {
        const [x, y] = panel.place(camera, i);
        most = Math.max(most, Math.abs(2 * x / width - 1), Math.abs(2 * y / height - 1));
      }
      return Math.max(0.8, Math.min(1.6, 0.9 / most));
    });
    // Cards are of different things; other pictures side by side are compared.
    view.fits = fits.map((own) => (options.onOpen ? own : Math.min(...fits)));
    panels.forEach((panel, i) => { panel.fit = view.fits[i]; });
    draw();
  }
  const KEYS = { ArrowLeft: () => ({ yaw: view.yaw - 0.1 }), ArrowRight: () => ({ yaw: view.yaw + 0.1 }),
    ArrowUp: () => ({ pitch: view.pitch - 0.1 }), ArrowDown: () => ({ pitch: view.pitch + 0.1 }),
    "+": () => ({ zoom: view.zoom * 1.2 }), "-": () => ({ zoom: view.zoom / 1.2 }) };

  function listen(panel, index, readout) {
    const { canvas } = panel, fingers = new Map();
    let moved = 0;
    canvas.onpointerdown = (event) => {
      if (!fingers.size) moved = 0;
      fingers.set(event.pointerId, event);
      canvas.setPointerCapture(event.pointerId); // a drag goes on outside
    };
    canvas.onpointermove = (event) => {
      const last = fingers.get(event.pointerId);
      if (!last) return;
      const [right, down] = [event.clientX - last.clientX, event.clientY - last.clientY];
      moved += Math.hypot(right, down);
      const other = [...fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
      const side = Math.min(canvas.clientWidth, canvas.clientHeight);
      const slide = (share) => ({ right: view.right + share * right / side, down: view.down + share * down / side });
      if (other) {
        const distance = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY) + 1;
        change({ zoom: view.zoom * distance(event) / distance(last), ...slide(0.5) });
      } else if (event.shiftKey || event.buttons & 2) change(slide(1));
      else change({ yaw: view.yaw + 0.01 * right, pitch: view.pitch + 0.01 * down });
      fingers.set(event.pointerId, event);
    };
    canvas.onpointercancel = (event) => fingers.delete(event.pointerId);
    canvas.onpointerup = (event) => {
      const wasAlone = fingers.size === 1;
      fingers.delete(event.pointerId);
      if (!wasAlone || moved > 6 || event.button) return;
      if (options.onOpen) return options.onOpen(index);
      panel.picked = panel.pick(view, event.clientX, event.clientY);
      readout.textContent = panel.picked === null ? "" : panel.describe(panel.picked);
      draw();
      if (panel.picked !== null) options.onPick?.(panel.picked, index);
    };
    canvas.ondblclick = fit;
    canvas.oncontextmenu = (event) => event.preventDefault();
    canvas.onkeydown = (event) => {
      if (options.onOpen && event.key === "Enter") return options.onOpen(index);
      if (!(event.key in KEYS) || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      change(KEYS[event.key]());
    };
    // Only where the reader has clicked: a page must scroll past its clouds.
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return;
      event.preventDefault();
      change({ zoom: view.zoom * Math.exp(-0.0015 * event.deltaY) });
    }, { passive: false });
  }

  root.className = ["act-clouds", options.one ? "act-one" : "", options.onOpen ? "act-pickable" : ""].join(" ");
  root.replaceChildren(...panels.map((panel, index) => {
    const readout = make("div", { className: "act-readout" });
    if (kept && Number.isInteger(clouds[index].picked)) {
      panel.picked = clouds[index].picked;
      readout.textContent = panel.describe(panel.picked);
    }
    listen(panel, index, readout);
    return make("figure", {}, panel.canvas, makeCaption(panel.cloud, readout));
  }));
  if (options.one) {
    const button = (text, title, onclick) =>
      make("button", { type: "button", title, ariaLabel: title, onclick }, text);
    root.append(make("div", { className: "act-tools" },
      button("\u2212", "smaller points", () => change({ dot: view.dot / 1.3 })),
      button("+", "larger points", () => change({ dot: view.dot * 1.3 })),
      ...(options.turned ? [] : [button("z up", "z points up, or y as before", () => change({ zUp: !view.zUp }))]),
      button("Reset", "back to the first view", fit)));
  }
  root.actObserver = new ResizeObserver(draw);
  panels.forEach((panel) => root.actObserver.observe(panel.canvas));
};
})();
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{{title}}</title>
<style>
:root { color-scheme: light dark; --page: #f6f7f9; --text: #1b2230; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --text: #e7eaf0; } }
body { margin: 0 auto; max-width: 1600px; padding: 14px 16px 24px; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.2rem; margin: 0 0 2px; overflow-wrap: anywhere; }
p { margin: 0 0 10px; font-size: .85rem; opacity: .68; }
.act-clouds { --act-height: calc(100dvh - 170px); }
.act-clouds canvas { background: #8881; }
{{style}}
</style>
</head>
<body>
<h1>{{title}}</h1>
<p>Drag to turn, shift-drag to move; click to read a point, then turn the wheel or pinch to zoom; double click to go
back.</p>
<main><noscript>This page draws with JavaScript, which is switched off here.</noscript></main>
<script type="application/json" id="data">{{data}}</script>
<script>
{{script}}
const { clouds } = JSON.parse(document.getElementById("data").textContent);
actViewer(document.querySelector("main"), clouds, { one: clouds.length === 1 });
</script>
</body>
</html>
"""
