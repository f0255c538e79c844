"use strict";
/* The heads: the grid, its colours and keys, and the card of the head that is looked at. Texts go in as text only. */
const DeskHeads = (() => {
  const DRAG = 110;
  // Colours that are told apart with any kind of colour vision (Okabe and Ito).
  const NAMED = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c7a00"];
  const RAMPS = {
    light: { zero: [233, 236, 241], high: [16, 62, 128], low: [176, 104, 0] },
    dark: { zero: [36, 45, 56], high: [140, 190, 255], low: [240, 170, 70] },
  };
  const NOTES = {
    scores: (name) => `Blue: the share of ${name}’s variance that a head adds to the embedding; amber: what it takes away.`,
    gains: (name) => `Blue: a head that alone removes more of ${name} than of anything else (variance, in closed form); amber: less.`,
    owner: () => "The concept that a head holds most of; the stronger, the more.",
  };

  function make(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in made && name !== "role") made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  /** A slider in percent with its number. `change(share, begin)` is told what a hand does; `begin` where it starts to. */
  function makeSlider(change, properties = {}) {
    const input = make("input", { type: "range", min: 0, max: 100, ...properties });
    const shown = make("output");
    let begin = true;
    input.addEventListener("input", () => {
      change(input.valueAsNumber / 100, begin);
      begin = false;
    });
    input.addEventListener("change", () => (begin = true));
    const set = (share) => {
      input.value = Math.round(share * 100);
      shown.textContent = percent(share);
    };
    return { input, shown, set };
  }

  /** A part of the sheet of thumbnails. */
  function makeThumb(facts, image) {
    const { columns, rows } = facts.sheet;
    const thumb = make("div", { className: "thumb", role: "img", "aria-label": facts.labelled.names[image] });
    const at = (index, all) => (all > 1 ? (100 * index) / (all - 1) : 0);
    thumb.style.backgroundPosition = `${at(image % columns, columns)}% ${at(Math.floor(image / columns), rows)}%`;
    return thumb;
  }

  const percent = (value) => `${Math.round(value * 100)} %`;
  const points = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value * 100).toFixed(1)} %`;
  const mix = (from, to, share) => `rgb(${from.map((value, at) => Math.round(value + (to[at] - value) * share)).join(" ")})`;
  const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  const ramp = () => RAMPS[isDark() ? "dark" : "light"];
  const strongestOf = (values) => Math.max(...values.map(Math.abs), 1e-9);

  /** From a position among values to its colour: amber below zero, blue above, by the strongest of all. */
  function shader(values) {
    const strongest = strongestOf(values);
    const { zero, high, low } = ramp();
    return (at) => mix(zero, values[at] < 0 ? low : high, Math.abs(values[at]) / strongest);
  }

  class Heads {
    /** `change(head, strength, begin)` is told what a hand does; `begin` where it starts to. */
    constructor(facts, mix, change) {
      Object.assign(this, { facts, mix, change, looked: 0, cells: [], color: "scores", concept: 0 });
      this.grid = document.getElementById("grid");
      this.card = document.getElementById("card");
      this.build();
      this.paint();
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
    }

    build() {
      const layers = [...new Set(this.facts.heads.map((head) => head.layer))].sort((one, other) => other - one);
      const columns = Math.max(...this.facts.heads.map((head) => head.head)) + 1;
      document.getElementById("bench").style.setProperty("--columns", columns);
      const names = Array.from({ length: columns }, (_, at) => make("span", { role: "columnheader" }, columns > 10 ? String(at) : `H${at}`));
      this.grid.append(make("div", { role: "row" }, make("span", { role: "columnheader" }, make("span", { className: "visually-hidden" }, "Layer")), ...names));
      // The last layer first, as a network is drawn.
      for (const layer of layers) {
        const row = make("div", { role: "row" }, make("span", { role: "rowheader" }, `L${layer}`));
        this.facts.heads.forEach((head, at) => {
          if (head.layer === layer) row.append(this.buildCell(at));
        });
        this.grid.append(row);
      }
      this.grid.addEventListener("keydown", (event) => this.press(event));
      this.cells[this.looked].tabIndex = 0;
    }

    buildCell(at) {
      const cell = make("div", { role: "gridcell", className: "cell", tabIndex: -1, "data-head": this.facts.heads[at].name });
      this.cells[at] = cell;
      cell.addEventListener("pointerdown", (event) => this.drag(event, at));
      cell.addEventListener("focus", () => this.look(at));
      return cell;
    }

    /** A click switches; beyond a few pixels sideways it is a drag, and sets how much. */
    drag(event, at) {
      if (event.button) return;
      const cell = this.cells[at];
      const from = this.mix.strengths[at];
      let moved = false;
      cell.setPointerCapture(event.pointerId);
      this.look(at);
      const move = (next) => {
        const far = next.clientX - event.clientX;
        if (!moved && Math.abs(far) < 5) return;
        this.change(at, from + far / DRAG, !moved);
        moved = true;
      };
      const stop = (last) => {
        cell.removeEventListener("pointermove", move);
        cell.removeEventListener("pointerup", stop);
        cell.removeEventListener("pointercancel", stop);
        if (!moved && last.type === "pointerup") this.change(at, from > 0 ? 0 : 1, true);
      };
      cell.addEventListener("pointermove", move);
      cell.addEventListener("pointerup", stop);
      cell.addEventListener("pointercancel", stop);
    }

    press(event) {
      const at = this.cells.indexOf(event.target);
      if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
      const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };
      const now = this.mix.strengths[at];
      if (event.key in steps) this.go(at, ...steps[event.key]);
      else if (event.key === "Home" || event.key === "End") this.go(at, 0, event.key === "Home" ? -1000 : 1000);
      else if (event.key === " " || event.key === "Enter") this.change(at, now > 0 ? 0 : 1, true);
      else if (event.key === "+" || event.key === "=") this.change(at, now + 0.1, true);
      else if (event.key === "-" || event.key === "−") this.change(at, now - 0.1, true);
      else return;
      event.preventDefault();
    }

    go(at, up, right) {
      const { layer, head } = this.facts.heads[at];
      const nearest = (one) => Math.abs(one.layer - layer - up) * 1000 + Math.abs(one.head - head - right);
      const found = this.facts.heads.reduce((best, one, index, all) => (nearest(one) < nearest(all[best]) ? index : best), at);
      this.cells[found].focus();
    }

    look(at) {
      this.cells[this.looked].classList.remove("looked");
      this.cells[this.looked].tabIndex = -1;
      this.looked = at;
      this.cells[at].classList.add("looked");
      this.cells[at].tabIndex = 0;
      this.drawCard();
    }

    shadeOwner(at) {
      const { concepts } = this.facts;
      const owner = this.ownerOf(at);
      const color = NAMED[owner % NAMED.length];
      const part = Math.max(0, concepts[owner].scores[at]) / Math.max(...concepts[owner].scores, 1e-9);
      return `color-mix(in srgb, ${color} ${Math.round(Math.sqrt(part) * 100)}%, var(--ramp-0))`;
    }

    ownerOf(at) {
      return this.facts.concepts.reduce((best, one, index, all) => (one.scores[at] > all[best].scores[at] ? index : best), 0);
    }

    paint() {
      const concept = this.facts.concepts[this.concept];
      const shade = this.color === "owner" ? (at) => this.shadeOwner(at) : shader(concept[this.color]);
      this.cells.forEach((cell, at) => cell.style.setProperty("--color", shade(at)));
      document.getElementById("color-note").textContent = NOTES[this.color](concept.name);
      this.drawRamp();
      this.update();
      this.drawCard();
    }

    drawRamp() {
      const legend = document.getElementById("ramp");
      if (this.color === "owner") {
        const named = this.facts.concepts.map((one, at) => {
          const patch = make("b");
          patch.style.background = NAMED[at % NAMED.length];
          return make("span", {}, patch, one.name);
        });
        legend.replaceChildren(...named);
        return;
      }
      const values = this.facts.concepts[this.concept][this.color];
      const strongest = strongestOf(values);
      const { zero, high, low } = ramp();
      const bar = make("i");
      const least = Math.min(...values, 0);
      bar.style.background = `linear-gradient(to right, ${mix(zero, low, -least / strongest)}, ${mix(zero, zero, 0)} ${(-100 * least) / (strongest - least)}%, ${mix(zero, high, 1)})`;
      legend.replaceChildren(points(least), bar, points(strongest));
    }

    /** Where strengths have changed. */
    update() {
      this.cells.forEach((cell, at) => {
        const strength = this.mix.strengths[at];
        if (cell.strength === strength && cell.color === this.color + this.concept) return;
        Object.assign(cell, { strength, color: this.color + this.concept });
        cell.style.setProperty("--gone", strength);
        cell.setAttribute("aria-selected", String(strength > 0));
        const held = this.facts.concepts[this.concept];
        const what = `${points(held.scores[at])} of ${held.name}`;
        cell.setAttribute("aria-label", `${this.facts.heads[at].name}: ${strength ? `${percent(strength)} removed` : "left alone"}, holds ${what}`);
        cell.title = `${this.facts.heads[at].name}: ${what}${this.facts.heads[at].texts[0] ? `; says “${this.facts.heads[at].texts[0][0]}”` : ""}`;
      });
      this.slider?.set(this.mix.strengths[this.looked]);
      const { count } = this.mix;
      document.getElementById("count").textContent = `${count} of ${this.cells.length} edited`;
    }

    drawCard() {
      const head = this.facts.heads[this.looked];
      const at = this.looked;
      const label = { "aria-label": `How much of ${head.name} is removed, in percent` };
      this.slider = makeSlider((strength, begin) => this.change(at, strength, begin), label);
      this.slider.set(this.mix.strengths[at]);
      const facts = this.facts.concepts.flatMap((one) => [make("dt", {}, one.name), make("dd", {}, points(one.scores[at]))]);
      const texts = head.texts.map(([text, share]) => {
        const row = make("li", {}, make("span", {}, text), make("span", {}, percent(share)));
        row.style.setProperty("--share", share);
        return row;
      });
      const says = texts.length ? make("ul", { className: "texts" }, ...texts) : make("p", {}, "It never varies on the scanned images.");
      this.card.replaceChildren(
        make("div", {}, make("h3", {}, head.name), make("div", { className: "strength" }, this.slider.input, this.slider.shown), make("p", { className: "note" }, "Share of each concept’s variance"), make("dl", { className: "facts" }, ...facts)),
        make("div", {}, make("p", { className: "note" }, "Texts that explain most of what it writes, with their share of its variance"), says),
        ...this.drawHeat(head),
      );
    }

    /** The images that excite a head most: as they are, and below where on them it looks. */
    drawHeat(head) {
      const found = this.facts.heat[head.name];
      if (!found) return [];
      const shown = found.map((one) => {
        const name = this.facts.labelled.names[one.image];
        return make("li", { title: name }, makeThumb(this.facts, one.image), this.makeTinted(one));
      });
      const [first] = head.texts[0];
      const note = make("p", { className: "note" }, "The images that excite it most, and where: red for ", make("q", {}, first), ", blue against it");
      return [make("div", {}, note, make("ul", { className: "excited" }, ...shown))];
    }

    /** A thumbnail in grey under the tint, which lies where the model's own crop does. */
    makeTinted({ image, box, overlay }) {
      const tint = make("img", { src: `data:image/png;base64,${overlay}`, alt: "" });
      ["left", "top", "width", "height"].forEach((side, at) => (tint.style[side] = `${box[at] * 100}%`));
      const grey = makeThumb(this.facts, image);
      grey.setAttribute("aria-label", `where it looks on ${this.facts.labelled.names[image]}`);
      return make("div", { className: "tinted" }, grey, tint);
    }
  }

  return { Heads, make, makeSlider, makeThumb, percent, points, shader };
})();
