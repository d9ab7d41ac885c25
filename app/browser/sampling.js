// Points of a shape as the Python processor takes them, with the same random numbers: a file has the vector that
// `ACTStudent.encode` gives it.

const NUM_SURFACE_POINTS = 8192, NEIGHBORS_BETWEEN = 20, PLASTIC = 0.7548776662466927; // as of processing_act.py

// Points of a surface, uniform by area; those of a cloud as they are.
export function pointsOf({ points, triangles }) {
  if (!triangles.length) return points;
  const corner = (triangle, place, axis) => points[3 * triangles[3 * triangle + place] + axis];
  const edge = (triangle, place) => [0, 1, 2].map((axis) => corner(triangle, place, axis) - corner(triangle, 0, axis));
  const count = triangles.length / 3, cumulative = new Float64Array(count);
  let total = 0, last = 0;
  for (let i = 0; i < count; i++) {
    const [a, b, c] = edge(i, 1), [d, e, f] = edge(i, 2);
    const area = Math.sqrt((b * f - c * e) ** 2 + (c * d - a * f) ** 2 + (a * e - b * d) ** 2);
    if (area) last = i;
    cumulative[i] = total += area;
  }
  if (!total) throw new Error("holds a mesh without area");
  const random = numpyRandom(), draw = () => Float64Array.from({ length: NUM_SURFACE_POINTS }, random);
  const [places, us, vs] = [draw(), draw(), draw()];
  const sampled = new Float64Array(3 * NUM_SURFACE_POINTS);
  for (let i = 0; i < NUM_SURFACE_POINTS; i++) {
    const triangle = Math.min(firstAbove(cumulative, places[i] * total), last); // rounding may reach the end
    const isOutside = us[i] + vs[i] > 1, u = isOutside ? 1 - us[i] : us[i], v = isOutside ? 1 - vs[i] : vs[i];
    const first = edge(triangle, 1), second = edge(triangle, 2);
    for (let axis = 0; axis < 3; axis++) {
      sampled[3 * i + axis] = corner(triangle, 0, axis) + u * first[axis] + v * second[axis];
    }
  }
  return sampled;
}

// Input of the model: `samples` selections of the points in random order, one behind the other.
export function modelInput(points, { samples = 1, ...processor }, upAxis) {
  const input = new Float32Array(3 * processor.num_points * samples);
  for (let number = 0; number < samples; number++) {
    input.set(selection(points, processor, upAxis, number), 3 * processor.num_points * number);
  }
  return input;
}

// One selection, turned, centered and scaled to the unit sphere. It begins where the one before ended, if need be in a
// new order; points between near ones complete a cloud of few.
function selection(points, { num_points: numPoints, up_axis: trainedUp, few_points: fewPoints }, upAxis, number) {
  const count = points.length / 3, first = (number * numPoints) % count;
  const order = torchPermutation(count, Math.floor((number * numPoints) / count));
  const sampled = new Float64Array(3 * numPoints), mean = [0, 0, 0];
  for (let i = 0; i < numPoints; i++) {
    const start = 3 * order[(first + i) % count];
    sampled.set(toUpAxis(points.subarray(start, start + 3), upAxis, trainedUp), 3 * i);
  }
  if (count < numPoints && fewPoints === "between") completeBetween(sampled, count, number * (numPoints - count));
  for (let i = 0; i < sampled.length; i++) mean[i % 3] += sampled[i] / numPoints;
  let radius = 1.1754943508222875e-38; // the least normal float32, for a cloud of equal points
  for (let i = 0; i < sampled.length; i++) sampled[i] -= mean[i % 3];
  for (let i = 0; i < sampled.length; i += 3) radius = Math.max(radius, Math.hypot(...sampled.subarray(i, i + 3)));
  return Float32Array.from(sampled, (value) => value / radius);
}

// Replace the points from place `count` on by points between each of the first ones and one of its nearest in turn, as
// the Python processor does, from place `first` of its endless sequence on.
function completeBetween(sampled, count, first) {
  if (count === 1) return;
  const distance = (i, j) => Math.sqrt(
    (sampled[3 * i] - sampled[3 * j]) ** 2 + (sampled[3 * i + 1] - sampled[3 * j + 1]) ** 2 +
    (sampled[3 * i + 2] - sampled[3 * j + 2]) ** 2);
  const near = Array.from({ length: count }, (_, i) => {
    const distances = Float64Array.from({ length: count }, (_, j) => distance(i, j));
    return [...distances.keys()].sort((a, b) => distances[a] - distances[b]).slice(1, 1 + NEIGHBORS_BETWEEN);
  });
  for (let i = count; i < sampled.length / 3; i++) {
    const number = first + i - count, start = number % count, step = number + 1;
    const neighbor = near[start][Math.floor(((step * PLASTIC) % 1) * near[start].length)], share = (step * PLASTIC ** 2) % 1;
    for (let axis = 0; axis < 3; axis++) {
      const from = sampled[3 * start + axis];
      sampled[3 * i + axis] = from + share * (sampled[3 * neighbor + axis] - from);
    }
  }
}

// A point with another axis up: a quarter turn about x. A model that knows no up axis takes points as they are.
export function toUpAxis([x, y, z], from, to) {
  return !to || from === to ? [x, y, z] : from === "z" ? [x, z, -y] : [x, -z, y];
}

function firstAbove(sorted, value) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] > value) high = middle;
    else low = middle + 1;
  }
  return low;
}

// Numbers in [0, 1) as numpy.random.default_rng(0).random() draws them: PCG64, XSL-RR.
function numpyRandom() {
  let state = 35399562948360463058890781895381311971n;
  const increment = 87136372517582989555478159403783844777n, multiplier = 47026247687942121848144207491837523525n;
  return () => {
    state = BigInt.asUintN(128, state * multiplier + increment);
    const turn = state >> 122n, value = BigInt.asUintN(64, (state >> 64n) ^ state);
    const bits = BigInt.asUintN(64, (value >> turn) | (value << (64n - turn)));
    return Number(bits >> 11n) / 2 ** 53;
  };
}

// The order of torch.randperm(count) with a generator of a seed: MT19937, and swaps from the front.
export function torchPermutation(count, seed = 0) {
  const random = mersenneTwister(seed), order = Uint32Array.from({ length: count }, (_, i) => i);
  for (let i = 0; i < count - 1; i++) {
    const other = i + random() % (count - i);
    [order[i], order[other]] = [order[other], order[i]];
  }
  return order;
}

function mersenneTwister(seed) {
  const SIZE = 624, state = new Uint32Array(SIZE);
  state[0] = seed;
  for (let i = 1; i < SIZE; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  let place = SIZE;
  return () => {
    for (let i = 0; place === SIZE && i < SIZE; i++) {
      const bits = (state[i] & 0x80000000) | (state[(i + 1) % SIZE] & 0x7fffffff);
      state[i] = state[(i + 397) % SIZE] ^ (bits >>> 1) ^ (bits & 1 ? 0x9908b0df : 0);
    }
    place %= SIZE;
    let value = state[place++];
    value ^= value >>> 11;
    value ^= (value << 7) & 0x9d2c5680;
    value ^= (value << 15) & 0xefc60000;
    return (value ^ (value >>> 18)) >>> 0;
  };
}
