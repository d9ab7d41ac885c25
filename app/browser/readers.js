// Read meshes and point clouds from their bytes. `readFile` returns `points`, three numbers each, and `triangles`, three
// numbers of points each: none for a cloud. Triangles come in the order of the Python readers, which sample by it.

const READERS = { stl: readStl, obj: readObj, ply: readPly, off: readOff, xyz: readTable, txt: readTable, pts: readTable,
  csv: readTable };
export const SUFFIXES = Object.keys(READERS);
const LARGEST = 1e15; // squares of larger coordinates leave the range of float32

export const suffixOf = (name) => name.slice(name.lastIndexOf(".") + 1).toLowerCase();

// Errors say what is wrong with the file, without its name.
export function readFile(name, buffer) {
  const bytes = new Uint8Array(buffer);
  if (!bytes.length) throw new Error("is empty");
  if ((bytes[0] === 0xff && bytes[1] === 0xfe) || (bytes[0] === 0xfe && bytes[1] === 0xff)) {
    throw new Error("is text in UTF-16; save it as UTF-8");
  }
  const { points, faces = [] } = READERS[suffixOf(name)](bytes);
  const count = points.length / 3;
  if (!count) throw new Error("holds no points");
  const bad = points.findIndex((value) => !(Math.abs(value) < LARGEST)); // NaN too
  if (bad >= 0) throw new Error(`holds coordinates that are not finite, or beyond 1e15, at point ${Math.floor(bad / 3)}`);
  const triangles = triangulate(faces);
  if (triangles.some((vertex) => !(vertex >= 0 && vertex < count))) {
    throw new Error(`holds a face that refers to no vertex: there are ${count}`);
  }
  return { points: Float64Array.from(points), triangles: Uint32Array.from(triangles) };
}

// Triangles, then first and second halves of quads, then fans of larger polygons, as trimesh cuts them.
function triangulate(faces) {
  const quads = faces.filter((face) => face.length === 4);
  return [
    ...faces.filter((face) => face.length === 3),
    ...quads.map(([a, b, c]) => [a, b, c]),
    ...quads.map(([a, , c, d]) => [c, d, a]),
    ...faces.filter((face) => face.length > 4)
      .flatMap((face) => face.slice(2).map((vertex, i) => [face[0], face[i + 1], vertex])),
  ].flat();
}

const decode = (bytes) => new TextDecoder().decode(bytes);
const rowsOf = (text) => text.replace(/#.*/g, "").split(/\r\n?|\n/).map((row) => row.trim()).filter(Boolean);

function toNumber(word) {
  const value = Number(word);
  if (Number.isNaN(value) && !/^[-+]?nan$/i.test(word)) throw new Error(`${quote(word)} is no number`);
  return value;
}

const quote = (word) => `'${word.slice(0, 40)}'`;

// STL ----------------------------------------------------------------------------------------------------------------

function readStl(bytes) {
  const view = new DataView(bytes.buffer), points = [];
  const count = bytes.length >= 84 ? view.getUint32(80, true) : -1;
  if (bytes.length === 84 + 50 * count) {
    for (let start = 96; start < bytes.length; start += 50) { // a header of 84 bytes, and a normal before each corner
      for (let i = 0; i < 9; i++) points.push(view.getFloat32(start + 4 * i, true));
    }
  } else {
    const text = decode(bytes).toLowerCase();
    const solids = text.match(/^\s*(end)?solid\b/gm) ?? [], ends = solids.filter((word) => word.includes("end"));
    if (!solids.length || 2 * ends.length < solids.length) {
      throw new Error("is truncated, or no STL file: expected 84 + 50 bytes a triangle, or text from solid to endsolid");
    }
    for (const match of text.matchAll(/\bvertex\s+(\S+)\s+(\S+)\s+(\S+)/g)) points.push(...match.slice(1).map(toNumber));
    if (points.length % 9) throw new Error(`holds ${points.length / 3} corners: expected three for each triangle`);
  }
  return { points, faces: Array.from({ length: points.length / 9 }, (_, i) => [3 * i, 3 * i + 1, 3 * i + 2]) };
}

// OBJ ----------------------------------------------------------------------------------------------------------------

function readObj(bytes) {
  const points = [], faces = [];
  for (const row of rowsOf(decode(bytes).replace(/\\\r?\n/g, " "))) {
    const [kind, ...words] = row.split(/\s+/);
    if (kind === "v") {
      if (words.length < 3) throw new Error(`expected three coordinates in the row ${quote(row)}`);
      points.push(...words.slice(0, 3).map(toNumber));
    } else if (kind === "f") {
      const numbers = words.map((word) => toNumber(word.split("/")[0])); // from 1, or negative: back from the last
      faces.push(numbers.map((number) => (number < 0 ? points.length / 3 + number : number - 1)));
    }
  }
  return { points, faces };
}

// PLY ----------------------------------------------------------------------------------------------------------------

const KINDS = { char: "Int8", uchar: "Uint8", short: "Int16", ushort: "Uint16", int: "Int32", uint: "Uint32",
  float: "Float32", double: "Float64", int8: "Int8", uint8: "Uint8", int16: "Int16", uint16: "Uint16", int32: "Int32",
  uint32: "Uint32", float32: "Float32", float64: "Float64" };

function readPly(bytes) {
  const start = new TextDecoder("latin1").decode(bytes.subarray(0, 2 ** 16)); // one character a byte
  const header = /^ply\s[^]*?\nend_header[^\n]*\n/.exec(start)?.[0];
  if (!header) throw new Error("has no header from ply to end_header");
  const format = /^format\s+(\w+)/m.exec(header)?.[1];
  const elements = [];
  for (const [kind, ...words] of header.split(/\r?\n/).map((row) => row.trim().split(/\s+/))) {
    if (kind === "element") elements.push({ name: words[0], count: Number(words[1]), properties: [] });
    if (kind === "property") {
      const name = words.pop(), types = words.filter((word) => word !== "list").map((word) => KINDS[word]);
      if (!elements.length || types.includes(undefined)) throw new Error(`has the unknown property ${quote(name)}`);
      elements.at(-1).properties.push({ name, types, isList: words[0] === "list" });
    }
  }
  const next = { ascii: textValues, binary_little_endian: binaryValues, binary_big_endian: binaryValues }[format]?.(
    bytes.subarray(header.length), format === "binary_little_endian");
  if (!next) throw new Error("has no format: expected ascii, binary_little_endian or binary_big_endian");
  const file = { points: [], faces: [] };
  for (const element of elements) readElement(element, next, file);
  return file;
}

function readElement({ name, count, properties }, next, { points, faces }) {
  const axes = ["x", "y", "z"].map((axis) => properties.findIndex((property) => property.name === axis));
  if (name === "vertex" && axes.includes(-1)) throw new Error("has vertices without x, y and z");
  const corners = properties.findIndex((property) => property.isList && /^vertex_ind(ex|ices)$/.test(property.name));
  for (let row = 0; properties.length && row < count; row++) {
    let values;
    try {
      values = properties.map(({ types, isList }) =>
        isList ? Array.from({ length: next(types[0]) }, () => next(types[1])) : next(types[0]));
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      throw new Error(`is truncated: announces ${count} elements ${name}, got ${row}`);
    }
    if (name === "vertex") points.push(...axes.map((axis) => values[axis]));
    if (name === "face" && corners >= 0) faces.push(values[corners]);
  }
}

function textValues(bytes) {
  const words = rowsOf(decode(bytes)).join(" ").split(/\s+/);
  let place = 0;
  return () => {
    if (place >= words.length) throw new RangeError("no more words");
    return toNumber(words[place++]);
  };
}

function binaryValues(bytes, isLittleEndian) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  let place = 0;
  return (kind) => {
    const value = view[`get${kind}`](place, isLittleEndian); // raises a RangeError past the end
    place += Number(/\d+/.exec(kind)) / 8;
    return value;
  };
}

// OFF ----------------------------------------------------------------------------------------------------------------

function readOff(bytes) {
  const match = /^\s*[A-Z]*OFF\s*(\d+)\s+(\d+)[^\n]*/.exec(rowsOf(decode(bytes)).join("\n"));
  if (!match) throw new Error("does not begin with OFF and its numbers of vertices and faces");
  const [numVertices, numFaces] = match.slice(1).map(Number);
  const rows = match.input.slice(match[0].length).split("\n").filter(Boolean).map((row) => row.split(/\s+/));
  const faces = rows.slice(numVertices, numVertices + numFaces).map((row) => row.map(toNumber));
  if (faces.length < numFaces || rows.length < numVertices || faces.some((face) => face.length <= face[0])) {
    throw new Error(`is truncated: announces ${numVertices} vertices and ${numFaces} faces, got ${rows.length} lines`);
  }
  const short = rows.slice(0, numVertices).find((row) => row.length < 3);
  if (short) throw new Error(`expected three coordinates in the row ${quote(short.join(" "))}`);
  return { points: rows.slice(0, numVertices).flatMap((row) => row.slice(0, 3).map(toNumber)),
    faces: faces.map((face) => face.slice(1, face[0] + 1)) };
}

// Text: x y z, and normals or colors, which are left out --------------------------------------------------------------

function readTable(bytes) {
  const rows = rowsOf(decode(bytes).replace(/\/\/.*/g, "").replace(/[,;]/g, " "));
  const count = /^\d+$/.test(rows[0] ?? "") ? Number(rows.shift()) : null; // a .pts file begins with it
  if (count === null && !/(^|\s)[-+]?(\.?\d\S*|inf|nan)(?=\s|$)/i.test(rows[0] ?? "0")) rows.shift(); // names of columns
  const points = [];
  let width = null;
  for (const row of rows) {
    const words = row.split(/\s+/);
    if (words.length !== (width ??= words.length) || (width !== 3 && width !== 6)) {
      throw new Error(`expected 3 columns (x y z) or 6 in every row, got ${words.length} in ${quote(row)}`);
    }
    for (const word of words.slice(0, 3)) points.push(toNumber(word));
  }
  if (count !== null && count !== rows.length) throw new Error(`announces ${count} points, got ${rows.length}`);
  return { points };
}
