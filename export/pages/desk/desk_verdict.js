"use strict";
/* What is said of an edit, as `remove-heads` and `evaluate --control` say it: against chance, other heads, and the projection alone. */
const DeskVerdict = (() => {
  const signed = (value) => (value < 0 ? "" : "+") + value.toFixed(3);
  const asGood = (yes) => (yes ? ", which is as good" : "");

  function spell(found) {
    const change = found.after - found.before;
    return `${found.before.toFixed(3)} to ${found.after.toFixed(3)} (${signed(change)}, 95 % interval ${signed(found.low)} to ${signed(found.high)})`;
  }

  /**
   * The verdict: harm first, since a rise does not make up for a fall.
   * `rules` are the library's own; `beside` holds, by figure, `control` (mean and sd of draws) and `projection`.
   */
  function judge(differences, rules, beside = {}) {
    const { goals, kept } = rules;
    const named = { ...goals, ...kept };
    const change = (name) => differences[name].after - differences[name].before;
    const known = Object.keys(differences).filter((name) => name in named);
    const fallen = known.filter((name) => differences[name].high < 0 && change(name) < -rules.tolerated);
    const risen = Object.keys(goals).filter((name) => name in differences && differences[name].low > 0);
    if (fallen.length) {
      const worst = fallen.reduce((one, other) => (change(other) < change(one) ? other : one));
      const also = risen.length ? `; ${named[risen[0]]} ${spell(differences[risen[0]])}` : "";
      return { word: "HARMS", because: `${named[worst]} falls: ${spell(differences[worst])}${also}.` };
    }
    if (risen.length) {
      const best = risen.reduce((one, other) => (change(other) > change(one) ? other : one));
      const said = sayBeside(differences[best].after, beside[best] || {}, rules);
      return { word: "HELPS", because: `${named[best]} rises: ${spell(differences[best])}${said}, and nothing else falls.` };
    }
    const said = [...Object.keys(goals), ...Object.keys(kept)].find((name) => name in differences);
    return said
      ? { word: "NO DIFFERENCE", because: `${named[said]} ${spell(differences[said])}.` }
      : { word: "NOT MEASURED", because: "no group has ten images or more." };
  }

  function sayBeside(after, { control, projection }, rules) {
    const parts = [];
    if (control) parts.push(`random heads ${control.mean.toFixed(3)} (sd ${control.sd.toFixed(3)})${asGood(after <= control.mean + rules.spreads * control.sd)}`);
    if (projection !== undefined) parts.push(`the projection alone ${projection.toFixed(3)}${asGood(after <= projection)}`);
    return parts.length ? ` (${parts.join("; ")})` : "";
  }

  /** As many heads in each layer, with the same strengths, drawn by chance. */
  function drawLike(layers, strengths, next) {
    const drawn = new Float64Array(strengths.length);
    for (const layer of new Set(layers)) {
      const pool = [...layers.keys()].filter((at) => layers[at] === layer);
      for (const strength of pool.map((at) => strengths[at]).filter(Boolean)) {
        drawn[pool.splice(Math.floor(next() * pool.length), 1)[0]] = strength;
      }
    }
    return drawn;
  }

  /** The mean of several draws, and their standard deviation as that of a sample. */
  function summarise(values) {
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
    return { mean, sd: Math.sqrt(squares / (values.length - 1)) };
  }

  return { drawLike, judge, summarise };
})();

if (typeof module !== "undefined") module.exports = DeskVerdict;
