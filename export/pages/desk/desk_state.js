"use strict";
/* What is on the desk: strengths, their history, the fragment that shares them, and recipes in and out. No document. */
const DeskState = (() => {
  const STEP = 0.01;
  const NOTHING = { kind: "none", title: "Nothing edited", heads: {}, projections: {} };

  const clean = (value) => Math.min(1, Math.max(0, Math.round(Number(value) / STEP) * STEP)) || 0;
  const short = (value) => String(Number(value.toFixed(4)));

  /** Strengths of heads and projections, by name, with undo and redo. Positions are those of the page's lists. */
  class Mix {
    constructor(heads, projections) {
      Object.assign(this, { heads, projections });
      this.strengths = new Float64Array(heads.length);
      this.outputs = new Float64Array(projections.length);
      this.past = [];
      this.future = [];
    }

    copy() {
      return { strengths: Float64Array.from(this.strengths), outputs: Float64Array.from(this.outputs) };
    }

    /** Remember where we are, before something changes. */
    keep() {
      this.past.push(this.copy());
      if (this.past.length > 200) this.past.shift();
      this.future = [];
    }

    restore(saved) {
      this.strengths.set(saved.strengths);
      this.outputs.set(saved.outputs);
    }

    undo() {
      return this.step(this.past, this.future);
    }

    redo() {
      return this.step(this.future, this.past);
    }

    step(from, to) {
      if (!from.length) return false;
      to.push(this.copy());
      this.restore(from.pop());
      return true;
    }

    /** A preset as a whole: what it does not name is left alone by the edit. */
    load(preset) {
      this.heads.forEach((head, at) => (this.strengths[at] = own(preset.heads, head) || 0));
      this.projections.forEach((name, at) => (this.outputs[at] = own(preset.projections, name) || 0));
    }

    get count() {
      return this.strengths.reduce((sum, value) => sum + (value > 0), 0);
    }

    /** `#heads=L3H5,L3H1:0.5&output=location:0.53`. */
    fragment() {
      const named = (names, values) =>
        names
          .map((name, at) => [name, values[at]])
          .filter(([, value]) => value > 0)
          .map(([name, value]) => encodeURIComponent(name) + (value < 1 ? `:${short(value)}` : ""))
          .join(",");
      const parts = { heads: named(this.heads, this.strengths), output: named(this.projections, this.outputs) };
      return Object.entries(parts).filter(([, value]) => value).map(([key, value]) => `${key}=${value}`).join("&");
    }

    /** Reads a fragment; whatever it names that is not here is left out. False where it says nothing. */
    readFragment(text) {
      const found = { heads: {}, projections: {} };
      const places = { heads: found.heads, output: found.projections };
      let known = false;
      for (const part of text.replace(/^#/, "").split("&")) {
        const [key, list] = part.split("=");
        if (!Object.hasOwn(places, key)) continue;
        known = true;
        for (const item of (list || "").split(",").filter(Boolean)) {
          const [name, strength] = item.split(":");
          places[key][decode(name)] = strength === undefined ? 1 : clampShare(strength);
        }
      }
      if (known) this.load(found);
      return known;
    }
  }

  const own = (object, name) => (Object.hasOwn(object, name) ? object[name] : undefined);

  function decode(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  }

  function clampShare(text) {
    const value = Number(text);
    return Number.isFinite(value) ? Math.min(1, Math.max(0, value)) : 0;
  }

  /** A text as YAML in double quotes; what is no plain letter is written by its number, so that no text is misread. */
  function quote(text) {
    const inside = Array.from(String(text), (letter) => {
      const code = letter.codePointAt(0);
      if (letter === '"' || letter === "\\") return `\\${letter}`;
      if (code >= 32 && code < 127) return letter;
      const wide = code > 0xffff;
      return (wide ? "\\U" : "\\u") + code.toString(16).padStart(wide ? 8 : 4, "0");
    });
    return `"${inside.join("")}"`;
  }

  /** The unbound recipe of a mix, which `clipedit apply` binds to a scan. */
  function writeRecipe(mix, facts, effect) {
    const lines = [
      "schema_version: 1",
      `name: ${quote(`remove-${facts.concept}`)}`,
      `source: ${quote("put together on the desk")}`,
      "base:",
      `  model: ${quote(facts.model.name)}`,
      ...(facts.model.pretrained ? [`  pretrained: ${quote(facts.model.pretrained)}`] : []),
      `effect: ${effect}`,
    ];
    const steps = [...headSteps(mix), ...outputSteps(mix, facts)];
    return [...lines, steps.length ? "steps:" : "steps: []", ...steps, ""].join("\n");
  }

  function headSteps(mix) {
    const groups = new Map();
    mix.heads.forEach((head, at) => {
      const strength = mix.strengths[at];
      if (strength > 0) groups.set(strength, [...(groups.get(strength) || []), head]);
    });
    // Heads of one strength are one step.
    return [...groups].sort(([one], [other]) => other - one).flatMap(([strength, heads]) => [
      "- operation: mean-ablate",
      `  heads: [${heads.join(", ")}]`,
      ...(strength < 1 ? [`  strength: ${short(strength)}`] : []),
    ]);
  }

  function outputSteps(mix, facts) {
    return facts.projections.flatMap((projection, at) => {
      if (!mix.outputs[at]) return [];
      const step = projection.step;
      const list = (key) => (step[key] ? [`  ${key}: [${step[key].map(quote).join(", ")}]`] : []);
      return [
        "- operation: project-out",
        "  target: output",
        ...(step.concept ? [`  concept: ${quote(step.concept)}`] : []),
        ...list("texts"),
        ...list("spared"),
        ...(step.directions ? [`  directions: ${step.directions}`] : []),
        ...(mix.outputs[at] < 1 ? [`  strength: ${short(mix.outputs[at])}`] : []),
      ];
    });
  }

  /** Strengths of a recipe file, ours or what `remove-heads` wrote. Throws where it holds what the desk does not show. */
  function readRecipe(text, mix) {
    const found = { heads: {}, projections: {} };
    for (const step of splitSteps(text)) {
      const strength = step.strength === undefined ? 1 : clampShare(step.strength);
      if (step.operation === "mean-ablate" && step.target === "heads" && !step.then) {
        for (const head of step.heads) {
          if (!mix.heads.includes(head)) throw new Error(`${head} is not on this desk`);
          found.heads[head] = 1 - (1 - (own(found.heads, head) || 0)) * (1 - strength);
        }
      } else if (step.operation === "project-out" && step.target === "output" && mix.projections.includes(step.concept)) {
        found.projections[step.concept] = strength;
      } else throw new Error(`the desk does not show ${step.operation} of ${step.target}${step.concept ? ` (${step.concept})` : ""}`);
    }
    return found;
  }

  function splitSteps(text) {
    const body = text.split(/^steps:/m)[1];
    if (body === undefined) throw new Error("it has no steps");
    const section = body.split(/^[a-z_]+:/m)[0];
    return section.split(/^\s*- (?=operation:)/m).slice(1).map((block) => {
      const value = (key) => unquote(block.match(new RegExp(`^\\s*${key}:[ \\t]*(.*)$`, "m"))?.[1].trim());
      return {
        operation: value("operation"),
        target: value("target") || "heads",
        concept: value("concept"),
        strength: value("strength"),
        then: value("then"),
        heads: block.match(/\bL\d{1,4}H\d{1,4}\b/g) || [],
      };
    });
  }

  function unquote(text) {
    if (text === undefined || !/^["']/.test(text)) return text;
    try {
      return text.startsWith('"') ? JSON.parse(text) : text.slice(1, -1).replaceAll("''", "'");
    } catch {
      return text;
    }
  }

  return { Mix, NOTHING, clean, quote, readRecipe, writeRecipe };
})();

if (typeof module !== "undefined") module.exports = DeskState;
