// Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
//
// The preprocessing of an exported URFM model, from its preprocessing.json; the same numbers as preprocessing.py. For Node
// and browsers, without dependencies. transformers.js resizes in its own way (no antialiasing in Node, the canvas's in a
// browser); hand the model what comes from here instead:
//
//     import { AutoModel, RawImage, Tensor } from '@huggingface/transformers';
//     import { preprocess } from './preprocessing.mjs';
//
//     const image = await RawImage.read('frame.png');          // 8 bits a channel: data, width, height, channels
//     const { data, dims } = preprocess(image, parameters);    // parameters: the content of preprocessing.json
//     const outputs = await model({ pixel_values: new Tensor('float32', data, dims) });
//
// Not for clinical use.

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
// Half the width of each filter, and its value at |x|.
const FILTERS = {
  bilinear: [1, (x) => Math.max(1 - x, 0)],
  bicubic: [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0)],
  lanczos: [3, (x) => (x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

/**
 * One image to pixel_values.
 *
 * @param {{data: Uint8Array|Uint8ClampedArray|Uint16Array|Float32Array, width: number, height: number, channels: number}}
 *   image rows of pixels, 1, 3 (RGB) or 4 (RGBA) values each. Of a Uint16Array 65535 is white; floats are in [0, 1] or [0, 255].
 * @param {{steps: object[]}} parameters the content of preprocessing.json.
 * @param {number[]} [box] top, left, height, width of the scan region; the whole image if left out.
 * @returns {{data: Float32Array, dims: number[]}} (1, 3, height, width).
 */
export function preprocess(image, parameters, box) {
  let now = read(image, parameters.input.unit_floats_times);
  if (box) now = crop(now, ...box);
  for (const { name, note, ...values } of parameters.steps) {
    if (name === 'crop_scan_region') continue; // by `box`
    if (!(name in STEPS)) throw new Error(`step '${name}' is not known; there are: ${Object.keys(STEPS).join(', ')}`);
    now = STEPS[name](now, values);
  }
  const { height, width, data } = now;
  const out = new Float32Array(3 * height * width);
  for (let i = 0; i < height * width; i++) for (let c = 0; c < 3; c++) out[c * height * width + i] = data[3 * i + c];
  return { data: out, dims: [1, 3, height, width] };
}

// An image is {height, width, bits8, data} of three values a pixel: a Uint8Array where bits8, else a Float32Array.
function read({ data, width, height, channels }, unitFloatsTimes) {
  if (![1, 3, 4].includes(channels) || data.length !== width * height * channels || Math.min(width, height) < 2)
    throw new Error(`${data.length} values are no image of ${height} x ${width} x ${channels} (1, 3 or 4 channels)`);
  const bits8 = data instanceof Uint8Array || data instanceof Uint8ClampedArray;
  if (!bits8 && !(data instanceof Uint16Array) && !(data instanceof Float32Array))
    throw new Error(`${data.constructor.name} is no image data; Uint8Array, Uint16Array or Float32Array is needed`);
  let values = data;
  if (data instanceof Uint16Array) values = Float32Array.from(data, (value) => value / 257);
  else if (!bits8) {
    const [low, high] = range(data);
    if (low >= -0.001 && high <= 1.001) values = Float32Array.from(data, (value) => clip(value, 0, 1) * unitFloatsTimes);
  }
  const white = bits8 || range(values)[1] > 1.001 ? 255 : 1;
  const out = bits8 ? new Uint8Array(3 * width * height) : new Float32Array(3 * width * height);
  for (let i = 0; i < width * height; i++)
    for (let c = 0; c < 3; c++) {
      let value = values[channels * i + (channels === 1 ? 0 : c)];
      if (channels === 4) {
        value = Math.fround(value * Math.fround(values[4 * i + 3] / white));
        value = bits8 ? roundHalfEven(value) : value;
      }
      if (!Number.isFinite(value)) throw new Error('the image holds NaN or infinite values');
      out[3 * i + c] = value;
    }
  return { height, width, bits8, data: out };
}

function range(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

function roundHalfEven(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

const mapped = (image, change) => ({ ...image, bits8: false, data: Float32Array.from(image.data, change) });
const clip = (x, low, high) => Math.min(Math.max(x, low), high);

function crop({ width, bits8, data }, top, left, rows, columns) {
  const out = new data.constructor(3 * rows * columns);
  for (let y = 0; y < rows; y++) {
    const start = 3 * ((top + y) * width + left);
    out.set(data.subarray(start, start + 3 * columns), 3 * y * columns);
  }
  return { height: rows, width: columns, bits8, data: out };
}

function percentileRescale(image, { lower, upper, white }) {
  const values = Float32Array.from(image.data).sort();
  const rank = (percent) => values[roundHalfEven((percent / 100) * (values.length - 1))];
  let [low, high] = [rank(lower), rank(upper)];
  if (!(high > low)) [low, high] = [values[0], values[values.length - 1]];
  if (!(high > low)) return mapped(image, () => 0);
  return mapped(image, (value) => clip(Math.fround(Math.fround(value - low) / Math.fround(high - low)), 0, 1) * white);
}

function padSquare({ height, width, bits8, data }) {
  const side = Math.max(height, width);
  const out = new data.constructor(3 * side * side);
  const [top, left] = [Math.floor((side - height) / 2), Math.floor((side - width) / 2)];
  for (let y = 0; y < height; y++)
    out.set(data.subarray(3 * y * width, 3 * (y + 1) * width), 3 * ((top + y) * side + left));
  return { height: side, width: side, bits8, data: out };
}

// For every new pixel: the first old one that counts, and the weights from there on.
function resizeWeights(old, size, filter) {
  const [half, value] = FILTERS[filter];
  const scale = old / size;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: size }, (_, row) => {
    const centre = (row + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - half * stretch + 0.5));
    const last = Math.min(old, Math.trunc(centre + half * stretch + 0.5));
    const weights = Array.from({ length: last - first }, (_, i) => value(Math.abs(first + i + 0.5 - centre) / stretch));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

function resize(image, { filter, height, width, shortest_edge }) {
  if (shortest_edge) {
    const long = Math.max(image.height, image.width);
    const longest = Math.trunc((shortest_edge * long) / Math.min(image.height, image.width));
    [height, width] = image.width <= image.height ? [longest, shortest_edge] : [shortest_edge, longest];
  }
  const [low, high] = range(image.data);
  let now = image;
  for (const [along, size] of [['width', width], ['height', height]]) {
    const table = resizeWeights(now[along], size, filter);
    // Pillow counts 8-bit images in whole 2**-22; sums of doubles are exact here.
    if (now.bits8)
      for (const part of table) part.weights = part.weights.map((w) => Math.trunc(w * 2 ** 22 + (w < 0 ? -0.5 : 0.5)));
    const next = { ...now, [along]: size };
    next.data = new now.data.constructor(3 * next.height * next.width);
    const step = along === 'width' ? 3 : 3 * now.width;
    for (let y = 0; y < next.height; y++)
      for (let x = 0; x < next.width; x++) {
        const { first, weights } = table[along === 'width' ? x : y];
        const start = along === 'width' ? 3 * (y * now.width + first) : 3 * (first * now.width + x);
        for (let c = 0; c < 3; c++) {
          let sum = 0;
          for (let i = 0; i < weights.length; i++) sum += weights[i] * now.data[start + c + i * step];
          if (now.bits8) sum = clip(Math.floor((sum + 2 ** 21) / 2 ** 22), 0, 255);
          next.data[3 * (y * next.width + x) + c] = sum;
        }
      }
    now = next;
  }
  if (now.bits8) return now;
  return mapped(now, (value) => clip(value, Math.min(0, low), Math.max(high > 1 ? 255 : 1, high)));
}

function centerCrop(image, { height, width }) {
  if (image.height < height || image.width < width)
    throw new Error(`an image of ${image.height} x ${image.width} has no crop of ${height} x ${width}`);
  return crop(image, Math.floor((image.height - height) / 2), Math.floor((image.width - width) / 2), height, width);
}

const STEPS = {
  percentile_rescale: percentileRescale,
  pad_square: padSquare,
  resize,
  center_crop: centerCrop,
  rescale: (image, { factor }) => mapped(image, (value) => value * factor),
  normalize: (image, { mean, std }) => mapped(image, (value, i) => (value - mean[i % 3]) / std[i % 3]),
};
