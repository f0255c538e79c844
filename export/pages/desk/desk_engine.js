"use strict";
/* From what is packed in the page, and strengths, to everything that it shows. No document: Node runs it in tests. */
const DeskEngine = (() => {
  const maths = typeof module !== "undefined" ? require("./desk_math.js") : DeskMath;
  const verdict = typeof module !== "undefined" ? require("./desk_verdict.js") : DeskVerdict;

  class Engine {
    constructor(facts, buffer) {
      this.facts = facts;
      const take = (name, kind) => new kind(buffer, ...facts.places[name]);
      const open = (name, half, whole) =>
        new maths.Readings(
          {
            base: take(`${name}.base`, Float32Array),
            terms: take(`${name}.terms`, whole),
            scales: take(`${name}.scales`, Float32Array),
          },
          facts.heads.length,
          half.readings,
          half.images,
        );
      const { plain, labelled } = facts;
      this.plain = open("plain", plain, Int8Array);
      this.lengths = {
        images: plain.images,
        lengths: take("plain.lengths", Int16Array),
        lengthScales: take("plain.lengthScales", Float32Array),
      };
      this.watchedRows = new Float32Array(Math.max(...plain.watched.map((one) => one.count)) * plain.images);
      if (labelled) {
        this.labelled = open("labelled", labelled, Int16Array);
        this.scores = labelled.questions.map((question) => new Float32Array(question.classes.length * labelled.images));
        this.answers = labelled.questions.map(() => new Int16Array(labelled.images));
        this.main = labelled.figures.filter((figure) => !figure.key.startsWith("read: "));
      }
      this.before = this.measure(new Float64Array(facts.heads.length), new Float64Array(facts.projections.length));
    }

    /** Everything that one edit changes. */
    measure(strengths, outputs) {
      const map = maths.composeMap(this.facts.projections, outputs, this.facts.span);
      this.plain.set(strengths);
      return { ...this.watch(strengths, map), ...this.ask(strengths, map) };
    }

    /** What labelled images answer. `marks` say by figure, task and cell which images are answered rightly. */
    ask(strengths, map) {
      const found = { figures: {}, groups: [], answers: [] };
      if (!this.labelled) return found;
      this.labelled.set(strengths);
      const { labelled } = this.facts;
      labelled.questions.forEach((question, at) => {
        maths.project(this.labelled, question.first, question.span, labelled.spanFirst, map, this.scores[at]);
        maths.answer(this.scores[at], question.classes.length, labelled.images, this.answers[at]);
      });
      for (const figure of labelled.figures) {
        const question = labelled.questions[figure.question];
        const marks = figure.tasks.map((cells) =>
          cells.map((cell) =>
            maths.markCell(cell, question, this.scores[figure.question], this.answers[figure.question], labelled.images),
          ),
        );
        found.figures[figure.key] = { value: maths.figureOf(marks), marks };
      }
      const right = labelled.questions[0].right;
      found.answers = Int16Array.from(this.answers[0]);
      found.groups = labelled.groups.map((group) => ({
        name: group.name,
        n: group.images.length,
        right: group.images.reduce((sum, image) => sum + (found.answers[image] === right[image]), 0),
      }));
      return found;
    }

    /** What is left of the variance of each watched concept, and how far embeddings turn. */
    watch(strengths, map) {
      const { plain, span } = this.facts;
      const found = maths.lengthsOf(this.lengths, strengths);
      maths.projectLengths(found, this.plain, plain.spanFirst, span, map);
      const variances = plain.watched.map((one) => {
        maths.project(this.plain, one.first, one.span, plain.spanFirst, map, this.watchedRows);
        return maths.varianceOf(this.watchedRows, one.count, plain.images, found.square);
      });
      const base = this.before ? this.before.variances : variances;
      return {
        variances,
        left: variances.map((value, at) => value / Math.max(base[at], 1e-30)),
        turns: { 0.95: maths.boundTurn(found, 0.95), 0.99: maths.boundTurn(found, 0.99) },
      };
    }

    /** Paired differences of what a verdict looks at. */
    compare(now) {
      const { labelled, rules } = this.facts;
      this.drawn ||= maths.drawWeights(labelled.strata);
      const found = {};
      for (const figure of labelled.figures) {
        if (!(figure.key in rules.goals) && !(figure.key in rules.kept)) continue;
        const before = this.before.figures[figure.key];
        // Of what is not edited the draws stay as they are.
        before.side ||= maths.drawSide(figure, before.marks, this.drawn);
        const difference = maths.compare(before.side, maths.drawSide(figure, now.figures[figure.key].marks, this.drawn));
        if (difference) found[figure.key] = difference;
      }
      return found;
    }

    /**
     * What stands beside an edit, by figure: as many random heads in the same layers, several draws of them, and the
     * projection without heads. Seeded, so that the same edit always meets the same controls. A draw at a step: between
     * them the page stays awake.
     */
    *control(strengths, outputs) {
      const { projections, span, heads, rules } = this.facts;
      const map = maths.composeMap(projections, outputs, span);
      const layers = heads.map((head) => head.layer);
      const next = maths.random(0);
      const drawn = strengths.some(Boolean) ? Array.from({ length: rules.draws }, () => verdict.drawLike(layers, strengths, next)) : [];
      const rows = [];
      for (const one of drawn) {
        rows.push(this.ask(one, map).figures);
        yield;
      }
      const alone = outputs.some(Boolean) ? this.ask(new Float64Array(heads.length), map).figures : null;
      const beside = this.facts.labelled.figures.map(({ key }) => [
        key,
        {
          ...(rows.length && { control: verdict.summarise(rows.map((row) => row[key].value)) }),
          ...(alone && { projection: alone[key].value }),
        },
      ]);
      return { drawn, beside: Object.fromEntries(beside) };
    }

    /** Images whose answer differs, by position: what it was, is, and should be. */
    changes(now) {
      const question = this.facts.labelled.questions[0];
      const found = [];
      this.before.answers.forEach((was, image) => {
        const is = now.answers[image];
        const should = question.right[image];
        if (was !== is) found.push({ image, was, is, should, kind: is === should ? "righted" : was === should ? "wronged" : "other" });
      });
      return found;
    }

    refresh() {
      this.plain.refresh();
      this.labelled?.refresh();
    }
  }

  function decodeBytes(text) {
    const letters = atob(text);
    const bytes = new Uint8Array(letters.length);
    for (let at = 0; at < letters.length; at++) bytes[at] = letters.charCodeAt(at);
    return bytes.buffer;
  }

  return { Engine, decodeBytes };
})();

if (typeof module !== "undefined") module.exports = DeskEngine;
