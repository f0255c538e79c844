"use strict";
/*
 * The mathematics of the desk; no document, no network. Readings of an image (scores of classes, coordinates) are linear
 * in the heads: `base - sum_h s_h * term_h`. A projection of the output acts on coordinates in the span of everything
 * that can be projected out. What is answered, how often that is right, and intervals follow from there.
 */
const DeskMath = (() => {
  const QUANTILE = 1.959964;
  const DRAWS = 2000;
  // Of a handful of images the bootstrap knows no spread.
  const LEAST_GROUP = 10;

  /**
   * `I - A` in coordinates of the span, row by row, where A takes all projections out together, in no order, as recipes
   * do: `P (I + sum c UU')^-1 P` with `c = s / (1 - s)`, and P for whatever goes whole.
   */
  function composeMap(projections, strengths, width) {
    const whole = [];
    const partly = [];
    projections.forEach((projection, at) => {
      const strength = strengths[at];
      for (const row of projection.rows) {
        if (strength >= 1) addDirection(whole, row);
        else if (strength) partly.push([row, strength / (1 - strength)]);
      }
    });
    const kept = takeOut(identity(width), whole);
    for (const [row, weight] of partly) {
      const seen = takeOut([Float64Array.from(row)], whole)[0];
      // One direction after another (Sherman and Morrison 1950); what goes whole stays out, since `seen` is clear of it.
      const mapped = kept.map((line) => dot(line, seen));
      const factor = weight / (1 + weight * dot(mapped, seen));
      kept.forEach((line, i) => line.forEach((_, j) => { line[j] -= factor * mapped[i] * mapped[j]; }));
    }
    const gone = new Float64Array(width * width);
    kept.forEach((line, i) => line.forEach((value, j) => { gone[i * width + j] = (i === j) - value; }));
    return gone;
  }

  const dot = (one, other) => one.reduce((sum, value, at) => sum + value * other[at], 0);

  function identity(width) {
    return Array.from({ length: width }, (_, i) => Float64Array.from({ length: width }, (__, j) => Number(i === j)));
  }

  /** Rows without what lies along some orthonormal directions. */
  function takeOut(rows, directions) {
    for (const row of rows) {
      for (const direction of directions) {
        const along = dot(row, direction);
        row.forEach((_, at) => { row[at] -= along * direction[at]; });
      }
    }
    return rows;
  }

  /** Adds what is new of a direction to an orthonormal basis. */
  function addDirection(basis, direction) {
    const fresh = takeOut(takeOut([Float64Array.from(direction)], basis), basis)[0];
    const length = Math.sqrt(dot(fresh, fresh));
    // What is left of a direction that two projections share is rounding.
    if (length > 1e-6) basis.push(fresh.map((value) => value / length));
  }

  /** What a reading loses of each coordinate: `M^T t`, where `t` are the reading's own coordinates in the span. */
  function lossOf(map, row) {
    const width = row.length;
    const found = new Float64Array(width);
    for (let j = 0; j < width; j++) for (let k = 0; k < width; k++) found[j] += map[k * width + j] * row[k];
    return found;
  }

  /** Readings of some images under strengths of heads; moving one head touches that head's terms only. */
  class Readings {
    constructor(packed, heads, readings, images) {
      Object.assign(this, { packed, heads, readings, images });
      this.strengths = new Float64Array(heads);
      this.now = Float32Array.from(packed.base);
    }

    move(head, strength) {
      const change = strength - this.strengths[head];
      if (!change) return;
      this.strengths[head] = strength;
      const { readings, images, now } = this;
      const { terms, scales } = this.packed;
      for (let reading = 0; reading < readings; reading++) {
        const factor = change * scales[head * readings + reading];
        const from = (head * readings + reading) * images;
        const to = reading * images;
        for (let image = 0; image < images; image++) now[to + image] -= factor * terms[from + image];
      }
    }

    set(strengths) {
      for (let head = 0; head < this.heads; head++) this.move(head, strengths[head]);
    }

    /** From the beginning: many small moves leave rounding behind. */
    refresh() {
      const strengths = Float64Array.from(this.strengths);
      this.now.set(this.packed.base);
      this.strengths.fill(0);
      this.set(strengths);
    }
  }

  /** Readings `first ...` with the projection taken off, one row for each of `rows` (their coordinates in the span). */
  function project(readings, first, rows, spanFirst, map, out) {
    const { images, now } = readings;
    rows.forEach((row, at) => {
      const target = at * images;
      out.set(now.subarray((first + at) * images, (first + at + 1) * images), target);
      lossOf(map, row).forEach((loss, column) => {
        if (!loss) return;
        const from = (spanFirst + column) * images;
        for (let image = 0; image < images; image++) out[target + image] -= loss * now[from + image];
      });
    });
    return out;
  }

  /** The class of highest score for each image. */
  function answer(scores, classes, images, out) {
    for (let image = 0; image < images; image++) {
      let best = 0;
      for (let one = 1; one < classes; one++) if (scores[one * images + image] > scores[best * images + image]) best = one;
      out[image] = best;
    }
    return out;
  }

  function answerAmong(scores, among, images, image) {
    let best = among[0];
    for (const one of among) if (scores[one * images + image] > scores[best * images + image]) best = one;
    return best;
  }

  /** Whether each image of a cell is answered rightly: 1 or 0. */
  function markCell(cell, question, scores, answers, images) {
    return Uint8Array.from(cell.images, (image) => {
      const given = cell.among ? answerAmong(scores, cell.among, images, image) : answers[image];
      return Number(given === question.right[image]);
    });
  }

  function share(right) {
    let found = 0;
    for (const one of right) found += one;
    return found / right.length;
  }

  /** The mean over tasks of the worst cell. */
  function figureOf(tasks) {
    return tasks.reduce((sum, cells) => sum + Math.min(...cells.map(share)), 0) / tasks.length;
  }

  /** The 95 % interval of a share (Wilson 1927). */
  function wilson(right, n) {
    const value = right / n;
    const z = QUANTILE;
    const middle = (value + (z * z) / (2 * n)) / (1 + (z * z) / n);
    const half = (z / (1 + (z * z) / n)) * Math.sqrt((value * (1 - value)) / n + (z * z) / (4 * n * n));
    return [Math.min(Math.max(0, middle - half), value), Math.max(Math.min(1, middle + half), value)];
  }

  /** A seeded generator of numbers in [0, 1) (mulberry32): the same page always draws the same. */
  function random(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 15), state | 1);
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed;
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
    };
  }

  /** How often each image is in each resampled set; every stratum keeps its size. */
  function drawWeights(strata, draws = DRAWS, seed = 0) {
    const next = random(seed);
    const members = new Map();
    strata.forEach((name, image) => members.set(name, [...(members.get(name) || []), image]));
    const weights = new Uint8Array(draws * strata.length);
    for (let draw = 0; draw < draws; draw++) {
      for (const images of members.values()) {
        for (let i = 0; i < images.length; i++) weights[draw * strata.length + images[Math.floor(next() * images.length)]]++;
      }
    }
    return { weights, draws, images: strata.length };
  }

  function drawWorst(cells, marks, drawn) {
    const worst = new Float64Array(drawn.draws).fill(Infinity);
    cells.forEach((cell, at) => {
      const right = marks[at];
      const usual = share(right);
      for (let draw = 0; draw < drawn.draws; draw++) {
        const from = draw * drawn.images;
        let total = 0;
        let good = 0;
        for (let i = 0; i < right.length; i++) {
          const weight = drawn.weights[from + cell.images[i]];
          total += weight;
          good += weight * right[i];
        }
        const value = total ? good / total : usual;
        if (value < worst[draw]) worst[draw] = value;
      }
    });
    return worst;
  }

  /** One side of a comparison, by task: marks of the groups that are large enough, and the worst of them in every draw. */
  function drawSide(figure, marks, drawn) {
    const tasks = figure.tasks.map((cells, task) => {
      const large = [...cells.keys()].filter((at) => cells[at].images.length >= LEAST_GROUP);
      return { cells: large.map((at) => cells[at]), marks: large.map((at) => marks[task][at]) };
    });
    return tasks.filter((task) => task.cells.length).map((task) => ({ marks: task.marks, worst: drawWorst(task.cells, task.marks, drawn) }));
  }

  /** What a figure changed by between two sides, with a paired interval; null where all its groups are small. */
  function compare(before, after) {
    if (!before.length) return null;
    const change = (draw) => before.reduce((sum, task, at) => sum + (after[at].worst[draw] - task.worst[draw]) / before.length, 0);
    const spread = before[0].worst.map((_, draw) => change(draw)).sort();
    return {
      before: figureOf(before.map((task) => task.marks)),
      after: figureOf(after.map((task) => task.marks)),
      low: quantile(spread, 0.025),
      high: quantile(spread, 0.975),
    };
  }

  function quantile(sorted, level) {
    const at = level * (sorted.length - 1);
    const low = Math.floor(at);
    const high = Math.min(low + 1, sorted.length - 1);
    return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
  }

  /** Squared lengths of edited embeddings, and their inner products with the unedited ones; heads only. */
  function lengthsOf(plain, strengths) {
    const { images, lengths, lengthScales } = plain;
    const factors = [1, ...Array.from(strengths, (value) => -value)];
    const square = new Float64Array(images);
    const inner = new Float64Array(images);
    const own = new Float64Array(images);
    let pair = 0;
    for (let a = 0; a < factors.length; a++) {
      for (let b = a; b < factors.length; b++, pair++) {
        const both = factors[a] * factors[b] * (a === b ? 1 : 2) * lengthScales[pair];
        const beside = a === 0 ? factors[b] * lengthScales[pair] : 0;
        if (!both && !beside) continue;
        const from = pair * images;
        for (let image = 0; image < images; image++) {
          square[image] += both * lengths[from + image];
          inner[image] += beside * lengths[from + image];
          if (pair === 0) own[image] = lengthScales[0] * lengths[image];
        }
      }
    }
    return { square, inner, own };
  }

  /** Takes a projection off lengths: `|Az|^2 = |z|^2 - 2 q.Mq + |Mq|^2`. */
  function projectLengths(found, readings, spanFirst, width, map) {
    const { images, now, packed } = readings;
    for (let image = 0; image < images; image++) {
      for (let i = 0; i < width; i++) {
        let moved = 0;
        for (let j = 0; j < width; j++) moved += map[i * width + j] * now[(spanFirst + j) * images + image];
        const at = (spanFirst + i) * images + image;
        found.square[image] += moved * moved - 2 * now[at] * moved;
        found.inner[image] -= packed.base[at] * moved;
      }
    }
    return found;
  }

  /** The variance of unit embeddings along some directions, summed. */
  function varianceOf(coordinates, count, images, square) {
    let total = 0;
    for (let row = 0; row < count; row++) {
      let sum = 0;
      let squares = 0;
      for (let image = 0; image < images; image++) {
        const value = coordinates[row * images + image] / Math.sqrt(Math.max(square[image], 1e-30));
        sum += value;
        squares += value * value;
      }
      total += squares / images - (sum / images) ** 2;
    }
    return total;
  }

  /** The angle that a new image does not exceed with such a probability (conformal); null where images are too few. */
  function boundTurn(found, level) {
    const angles = Array.from(found.square, (square, image) => {
      const cosine = found.inner[image] / Math.sqrt(Math.max(square * found.own[image], 1e-30));
      return Math.acos(Math.min(1, cosine));
    }).sort((one, other) => other - one);
    const rank = Math.floor((1 - level) * (angles.length + 1) + 1e-9);
    return rank >= 1 ? angles[rank - 1] : null;
  }

  return {
    Readings, answer, boundTurn, compare, composeMap, drawSide, drawWeights, figureOf, lengthsOf,
    lossOf, markCell, project, projectLengths, quantile, random, share, varianceOf, wilson,
  };
})();

if (typeof module !== "undefined") module.exports = DeskMath;
