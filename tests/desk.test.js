"use strict";
/* Known values of the desk's mathematics, and what is on it; run by test_desk.py with `node --test`. */
const test = require("node:test");
const assert = require("node:assert");
const maths = require(`${process.env.DESK}/desk_math.js`);
const verdict = require(`${process.env.DESK}/desk_verdict.js`);
const state = require(`${process.env.DESK}/desk_state.js`);
const near = (one, other, by = 1e-9) => assert.ok(Math.abs(one - other) <= by, `${one} is not ${other}`);
test("wilson", () => {
  const pairs = [[0, 10], [7, 10], [10, 10], [123, 250]], wanted = JSON.parse(process.env.WILSON);
  pairs.forEach((pair, at) => maths.wilson(...pair).forEach((value, end) => near(value, wanted[at][end])));
});
test("one projection is its own map, and a second of the same takes out what both weigh together", () => {
  const along = { rows: [[0.6, 0.8]] };
  const once = maths.composeMap([along], [0.5], 2);
  [0.18, 0.24, 0.24, 0.32].forEach((value, at) => near(once[at], value));
  // c = 1 + 1, so that 2/3 of the direction goes.
  const twice = maths.composeMap([along, along], [0.5, 0.5], 2);
  [0.24, 0.32, 0.32, 0.32 * 4 / 3].forEach((value, at) => near(twice[at], value));
});
test("several projections act as in recipes, in no order", () => {
  const [first, second] = [{ rows: [[1, 0, 0]] }, { rows: [[0.6, 0.8, 0]] }];
  // Both span the first two axes: whole, nothing is left of these.
  const whole = maths.composeMap([first, second], [1, 1], 3);
  [1, 0, 0, 0, 1, 0, 0, 0, 0].forEach((value, at) => near(whole[at], value));
  // One goes whole, and of what it leaves of the other, [0, .8], c = 1 takes 1 - 1 / 1.64.
  const mixed = maths.composeMap([first, second], [1, 0.5], 3);
  [1, 0, 0, 0, 0.64 / 1.64, 0, 0, 0, 0].forEach((value, at) => near(mixed[at], value));
  const turned = maths.composeMap([second, first], [0.5, 1], 3);
  turned.forEach((value, at) => near(value, mixed[at]));
});
test("moving there and back ends where it began", () => {
  const packed = { base: Float32Array.of(1, 2), terms: Int16Array.of(100, -200, 300, 5), scales: Float32Array.of(0.01, 0.02) };
  const readings = new maths.Readings(packed, 2, 1, 2);
  readings.set([1, 0.5]);
  near(readings.now[0], 1 - 1 - 3, 1e-6), near(readings.now[1], 2 + 2 - 0.05, 1e-6);
  readings.set([0, 0]);
  near(readings.now[0], 1, 1e-6), near(readings.now[1], 2, 1e-6);
});
test("a figure is the mean over tasks of the worst cell", () => {
  near(maths.figureOf([[[1, 1, 0, 0], [1, 1]], [[0, 1]]]), 0.5);
});
test("quantiles are numpy's", () => near(maths.quantile([1, 2, 4, 8], 0.4), 2.4));
test("every stratum keeps its size", () => {
  const { weights } = maths.drawWeights([0, 1, 0, 1, 1], 50, 3);
  for (let at = 0; at < 50; at++) {
    assert.equal(weights[at * 5] + weights[at * 5 + 2], 2);
    assert.equal(weights[at * 5 + 1] + weights[at * 5 + 3] + weights[at * 5 + 4], 3);
  }
});
const rules = { goals: { worst_group: "worst group" }, kept: { overall: "overall accuracy", retention: "retention" }, tolerated: 0.005, spreads: 2 };
const judge = (differences, beside) => verdict.judge(differences, rules, beside);
test("harm comes first", () => {
  const rise = { before: 0.5, after: 0.6, low: 0.05, high: 0.15 }, fall = { before: 0.9, after: 0.8, low: -0.15, high: -0.05 };
  assert.equal(judge({ worst_group: rise }).word, "HELPS");
  assert.equal(judge({ worst_group: rise, retention: fall }).word, "HARMS");
  assert.equal(judge({ worst_group: { before: 0.5, after: 0.51, low: -0.01, high: 0.03 } }).word, "NO DIFFERENCE");
  assert.equal(judge({ overall: { before: 0.5, after: 0.497, low: -0.004, high: -0.001 } }).word, "NO DIFFERENCE");
  assert.equal(judge({}).word, "NOT MEASURED");
});
test("random heads within two standard deviations are as good", () => {
  const found = { worst_group: { before: 0.5, after: 0.6, low: 0.05, high: 0.15 } };
  const said = (sd) => judge(found, { worst_group: { control: { mean: 0.57, sd }, projection: 0.55 } }).because;
  assert.match(said(0.015), /\(random heads 0\.570 \(sd 0\.015\), which is as good; the projection alone 0\.550\), and nothing/);
  assert.match(said(0.01), /\(random heads 0\.570 \(sd 0\.010\); the projection/);
  const { mean, sd } = verdict.summarise([1, 2, 6]);
  near(mean, 3), near(sd, Math.sqrt(7));
});
test("random heads keep layers and strengths", () => {
  const layers = [0, 0, 0, 1, 1], strengths = [1, 0.5, 0, 0, 0.25], seen = new Set();
  for (let seed = 0; seed < 40; seed++) {
    const drawn = verdict.drawLike(layers, strengths, maths.random(seed));
    assert.deepEqual([...drawn.slice(0, 3)].sort(), [0, 0.5, 1]), assert.deepEqual([...drawn.slice(3)].sort(), [0, 0.25]);
    seen.add(drawn.join());
  }
  assert.equal(seen.size, 12);
});
test("undo and redo", () => {
  const mix = new state.Mix(["L0H0", "L0H1"], ["a, b:c"]);
  mix.keep(), (mix.strengths[1] = 0.25), (mix.outputs[0] = 0.5);
  assert.equal(mix.fragment(), "heads=L0H1:0.25&output=a%2C%20b%3Ac:0.5");
  assert.ok(mix.undo()), assert.equal(mix.count, 0), assert.ok(!mix.undo());
  assert.ok(mix.redo()), assert.equal(mix.strengths[1], 0.25), assert.ok(!mix.redo());
  assert.ok(mix.readFragment("#heads=L9H9,L0H0&output=__proto__:1,a%2C%20b%3Ac:7"));
  assert.deepEqual([...mix.strengths, ...mix.outputs], [1, 0, 1]);
  assert.ok(!mix.readFragment("#card")), assert.ok(!mix.readFragment("#%E0%A4%A"));
});
test("a recipe of other things is refused with what it is", () => {
  const mix = new state.Mix(["L0H0"], []);
  assert.throws(() => state.readRecipe("steps:\n- operation: keep-only\n  heads: [L0H0]\n", mix), /keep-only of heads/);
  assert.throws(() => state.readRecipe("steps:\n- operation: mean-ablate\n  heads: [L7H0]\n", mix), /L7H0 is not/);
  assert.throws(() => state.readRecipe("hello", mix), /no steps/);
});
