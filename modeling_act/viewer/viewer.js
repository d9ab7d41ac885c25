// actViewer(root, clouds, {onPick, onOpen, one, turned}) fills `root` with a panel for each of the `pack_clouds`, all
// under one view. `one` makes a large viewer with buttons, without "z up" if `turned`. onPick(point, cloud) takes a
// clicked point; onOpen(cloud) makes each panel a button. WebGL draws, or a plain canvas where there is none.
globalThis.actViewer ??= (() => {
"use strict";
const DISTANCE = 4; // of the eye from the center of a cloud, which fills the unit ball

// Names of files and labels enter the page as text nodes, here.
function make(tag, options, ...children) {
  const node = Object.assign(document.createElement(tag), options);
  node.append(...children);
  return node;
}

const decode = (text, Kind) => new Kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
const format = (value) => Number(value.toPrecision(4)).toString();

// Drawing ------------------------------------------------------------------------------------------------------------

const VERTEX = `attribute vec3 position; attribute vec3 color; uniform mat3 turn; uniform vec2 unit, shift;
uniform float size; varying vec3 tint; varying float roundness;
void main() {
  vec3 place = turn * position; // z towards the eye
  float away = ${DISTANCE}.0 - place.z;
  gl_Position = vec4(place.xy * unit * ${DISTANCE}.0 + shift * away, -0.5 * place.z * away, away);
  gl_PointSize = size * ${DISTANCE}.0 / away;
  roundness = clamp((gl_PointSize - 2.0) / 8.0, 0.0, 1.0); // small points are flat
  tint = color * (0.88 + 0.12 * place.z); // darker with distance
}`;
const FRAGMENT = `precision mediump float; varying vec3 tint; varying float roundness;
void main() {
  vec2 at = 2.0 * gl_PointCoord - 1.0;
  float inside = 1.0 - dot(at, at);
  if (inside < 0.0) discard;
  vec3 normal = vec3(at.x, -at.y, sqrt(inside)); // a ball, lit from above
  float light = 0.75 + 0.35 * max(0.0, dot(normal, vec3(-0.3, 0.6, 0.74)));
  gl_FragColor = vec4(tint * mix(1.0, light, roundness), 1.0);
}`;

let renderer; // one WebGL context for all panels of the page; null without WebGL
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
  let uploaded = null; // the panel in the buffers
  return (panel, camera) => {
    const { width, height } = panel.canvas;
    if (canvas.width < width) canvas.width = width;
    if (canvas.height < height) canvas.height = height;
    gl.viewport(0, canvas.height - height, width, height); // the upper left corner
    for (const column of uploaded === panel ? [] : columns) {
      gl.bindBuffer(gl.ARRAY_BUFFER, column.buffer);
      gl.bufferData(gl.ARRAY_BUFFER, panel[column.key], gl.STATIC_DRAW);
      gl.vertexAttribPointer(column.place, 3, column.kind, true, 0, 0);
    }
    uploaded = panel;
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

// The view's camera in one panel: lengths in pixels, `turn` column by column.
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

// One panel ---------------------------------------------------------------------------------------------------------

function makePanel(cloud) {
  const panel = {
    cloud, count: cloud.drawn, fit: 1, canvas: make("canvas", { tabIndex: 0 }), picked: null,
    points: decode(cloud.points, Int16Array), colors: decode(cloud.colors, Uint8Array),
    // [x, y, depth]: pixels, and depth towards the eye.
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
      if (!canvas.width || !canvas.height) return; // hidden
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
    // The front point under the pointer, or the nearest one within a finger's width, or null.
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
      const step = 10 ** Math.floor(Math.log10(cloud.radius) - 3.5); // the precision of 16 bits
      const at = cloud.center.map((middle, axis) => {
        const value = panel.points[3 * i + axis] / 32767 * cloud.radius + middle;
        return Number((Math.round(value / step) * step).toPrecision(9)).toString();
      });
      const value = cloud.labels ? cloud.legend[decode(cloud.labels, Uint32Array)[i]][0]
        : cloud.values ? format(decode(cloud.values, Float32Array)[i]) : null;
      const number = cloud.drawn === cloud.total ? `point ${i}` : "point";
      return [number, `(${at.join(", ")})`, value].filter(Boolean).join("  ");
    },
  };
  panel.canvas.setAttribute("role", "img");
  panel.canvas.setAttribute("aria-label", `point cloud ${cloud.name}`);
  return panel;
}

function makeCaption(cloud, readout) {
  const count = cloud.drawn.toLocaleString("en-US"), total = cloud.total.toLocaleString("en-US");
  const number = cloud.drawn < cloud.total ? `${count} of ${total} points` : `${count} points`;
  const caption = make("figcaption", {}, make("b", { title: cloud.name }, cloud.name), " ",
    make("span", { className: "act-quiet" }, cloud.caption ?? number), readout);
  if (cloud.legend) caption.append(make("div", { className: "act-legend" }, ...cloud.legend.map(([name, color]) => {
    const dot = make("i");
    dot.style.background = color;
    return make("span", {}, dot, name);
  })));
  if (cloud.scale) {
    const [low, high, colors] = cloud.scale, bar = make("i");
    bar.style.background = `linear-gradient(90deg, ${colors.join(", ")})`;
    caption.append(make("div", { className: "act-scale act-quiet" }, format(low), bar, format(high)));
  }
  return caption;
}

// All panels of one view ---------------------------------------------------------------------------------------------

const HOME = { yaw: 0.6, pitch: 0.35, zoom: 1, right: 0, down: 0, dot: 1, zUp: false };

return function actViewer(root, clouds, options = {}) {
  const shape = clouds.map((cloud) => cloud.points).join();
  const isRecolored = root.actShape === shape; // the same points in other colors keep their view
  const view = root.actView = isRecolored ? root.actView : { ...HOME, zUp: root.actView?.zUp ?? false };
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
  // Back to the first view, each cloud as large as its panel allows.
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
    // Cards show different things; other panels are compared, so they share a scale.
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
      canvas.setPointerCapture(event.pointerId); // the drag continues outside of the canvas
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
    if (options.onOpen) canvas.setAttribute("role", "button");
    canvas.onkeydown = (event) => {
      if (options.onOpen && ["Enter", " "].includes(event.key)) {
        event.preventDefault(); // a blank would scroll
        return options.onOpen(index);
      }
      if (!(event.key in KEYS) || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      change(KEYS[event.key]());
    };
    // Only after a click: otherwise the page must scroll past its clouds.
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return;
      event.preventDefault();
      change({ zoom: view.zoom * Math.exp(-0.0015 * event.deltaY) });
    }, { passive: false });
  }

  root.className = ["act-clouds", options.one ? "act-one" : "", options.onOpen ? "act-pickable" : ""].join(" ");
  root.replaceChildren(...panels.map((panel, index) => {
    const readout = make("div", { className: "act-readout" });
    if (isRecolored && Number.isInteger(clouds[index].picked)) {
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
