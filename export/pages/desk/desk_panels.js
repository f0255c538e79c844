"use strict";
/* What an edit does: verdict, figures, groups, images and the front. Rows are made once and moved afterwards. */
const DeskPanels = (() => {
  const { make, makeThumb, percent } = DeskHeads;
  const ICONS = { HELPS: "▲", HARMS: "▼", "NO DIFFERENCE": "=", "NOT MEASURED": "?" };
  const KINDS = { all: "all", righted: "now right", wronged: "now wrong", other: "still wrong" };
  const SHOWN = 24;
  // Where a track of what is left ends: turned embeddings may hold more of a concept than before.
  const MOST_LEFT = 1.5;
  const by = (id) => document.getElementById(id);
  const place = (mark, value) => (mark.style.left = `${(value * 100).toFixed(2)}%`);
  const stretch = (mark, low, high) => {
    place(mark, low);
    mark.style.width = `${((high - low) * 100).toFixed(2)}%`;
  };
  const digits = (value) => `${(value * 100).toFixed(1)}`;

  /** A row with a track: where it was, where it is, and its interval. */
  function makeRow(name, note) {
    const was = make("i", { className: "was" });
    const now = make("i", { className: "now" });
    const fill = make("i", { className: "fill" });
    const span = make("i", { className: "span" });
    const chance = make("i", { className: "chance", hidden: true });
    const value = make("span", { className: "value" });
    const also = make("span", { className: "note also" }, note || "");
    const node = make("div", { className: "figure" }, make("span", { className: "name" }, name), value, make("span", { className: "track", "aria-hidden": "true" }, fill, span, chance, was, now), also);
    return { node, was, now, fill, span, chance, value, also };
  }

  function setRow(row, was, now, interval, lowerIsBetter = false) {
    const change = now - was;
    const tone = Math.abs(change) < 0.0005 ? "" : change > 0 !== lowerIsBetter ? "up" : "down";
    place(row.was, was);
    place(row.now, now);
    row.node.style.setProperty("--tone", tone === "up" ? "var(--good)" : tone === "down" ? "var(--bad)" : "var(--ink)");
    stretch(row.fill, Math.min(was, now), Math.max(was, now));
    stretch(row.span, ...(interval || [now, now]));
    if (!row.bold) {
      row.bold = make("b");
      row.from = document.createTextNode("");
      row.value.append(row.from, row.bold);
    }
    row.from.data = `${digits(was)} → `;
    row.bold.textContent = `${digits(now)} %`;
    row.bold.className = tone;
  }

  /** Where an axis begins and ends: some room around its points, within what a share can be. */
  function boundsOf(values) {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = Math.max(0.01, (high - low) * 0.12);
    return [Math.max(0, low - room), Math.min(1, high + room)];
  }

  /** Round numbers on an axis, at most six. */
  function ticksOf([low, high]) {
    const step = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2].find((one) => (high - low) / one <= 5.5);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9; at++) found.push(at * step);
    return found;
  }

  const tickText = (value) => String(Number((value * 100).toFixed(1)));

  class Panels {
    constructor(facts, engine, put) {
      Object.assign(this, { facts, engine, put, kind: "all" });
      this.rows = {};
      if (facts.labelled) this.buildLabelled();
      this.watched = facts.plain.watched.map((one, at) => this.buildWatched(one, at));
      by("watched").append(...this.watched.map((row) => row.node));
      by("watch-note").textContent =
        `What is left of the variance along each concept’s texts, of ${facts.plain.images} unlabelled images` +
        (facts.labelled && Object.keys(facts.labelled.readable).length ? "; below it, where labels name the concept, how often it is read rightly." : ".");
    }

    buildLabelled() {
      const { labelled } = this.facts;
      const order = (figure) => (figure.key.startsWith("worst") ? 0 : figure.key === "overall" ? 1 : 2);
      this.ordered = [...this.engine.main].sort((one, other) => order(one) - order(other));
      for (const figure of this.ordered) {
        const row = makeRow(figure.title[0].toUpperCase() + figure.title.slice(1));
        row.low = figure.key === "place_accuracy";
        this.rows[figure.key] = row;
        by("figures").append(row.node);
      }
      this.groupRows = labelled.groups.map((group) => makeRow(group.name, `n ${group.images.length}`));
      // The worst before the edit first.
      const worst = labelled.groups.map((_, at) => at).sort((one, other) => this.accuracy(one) - this.accuracy(other));
      by("groups").append(...worst.map((at) => this.groupRows[at].node));
      for (const [kind, title] of Object.entries(KINDS)) {
        const box = make("input", { type: "radio", name: "kind", value: kind, checked: kind === "all" });
        const text = make("span", {}, title);
        box.addEventListener("change", () => {
          this.kind = kind;
          this.drawChanges();
        });
        by("kinds").append(make("label", {}, box, text));
        this.rows[`kind ${kind}`] = text;
      }
      by("front-section").hidden = !this.facts.front.length;
    }

    accuracy(at) {
      const group = this.engine.before.groups[at];
      return group.right / group.n;
    }

    buildWatched(one, at) {
      const first = at === 0;
      const name = first ? `${one.name} (what is to go)` : one.name;
      return makeRow(name, "");
    }

    /** Every frame: positions and numbers. */
    move(now) {
      const { before } = this.engine;
      this.now = now;
      this.watched.forEach((row, at) => {
        const { name } = this.facts.plain.watched[at];
        setRow(row, 1 / MOST_LEFT, Math.min(1, now.left[at] / MOST_LEFT), null, at === 0);
        row.bold.textContent = `${digits(now.left[at])} %`;
        row.from.data = "";
        const key = this.facts.labelled?.readable[name];
        row.also.hidden = !key;
        row.also.textContent = key ? `read rightly: ${digits(before.figures[key].value)} → ${digits(now.figures[key].value)} %` : "";
      });
      this.promise(now);
      if (!this.facts.labelled) return;
      for (const figure of this.engine.main) setRow(this.rows[figure.key], before.figures[figure.key].value, now.figures[figure.key].value, null, this.rows[figure.key].low);
      now.groups.forEach((group, at) => {
        setRow(this.groupRows[at], this.accuracy(at), group.right / group.n, DeskMath.wilson(group.right, group.n));
      });
      this.moveRing(now);
      by("verdict").classList.add("waiting");
    }

    promise(now) {
      const degrees = (angle) => `${((angle * 180) / Math.PI).toFixed(1)}°`;
      const said = Object.entries(now.turns)
        .filter(([, angle]) => angle !== null)
        .map(([level, angle]) => `${percent(Number(level))} of new images like these turn by at most ${degrees(angle)}, so that no text’s cosine changes by more than ${(2 * Math.sin(angle / 2)).toFixed(3)}`);
      by("promise").textContent = said.length ? `${said.join("; ")}.` : "Too few images for a bound.";
    }

    /** When the hand rests: intervals and pictures. */
    settle(now) {
      this.now = now;
      if (!this.facts.labelled) {
        this.say({ word: "NOT MEASURED", because: "no labelled images are on this desk. Make it with --dataset DIR: images with a class and a group." });
        return;
      }
      this.differences = this.engine.compare(now);
      this.drawChanges();
    }

    /** What is said when it is known what stands beside the edit. */
    conclude(beside) {
      const { differences } = this;
      this.say(this.isNothing ? { word: "NO DIFFERENCE", because: "nothing is edited yet. Take out heads, or begin with a preset." } : DeskVerdict.judge(differences, this.facts.rules, beside));
      for (const figure of this.engine.main) this.sayBeside(this.rows[figure.key], differences[figure.key], beside[figure.key].control);
    }

    /** Below a figure: the interval of its change, and what as many random heads give. */
    sayBeside(row, found, control) {
      const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value * 100).toFixed(1)}`;
      const parts = found ? [`${signed(found.after - found.before)} (95 %: ${signed(found.low)} to ${signed(found.high)})`] : [];
      if (control) parts.push(`random heads ${digits(control.mean)} (sd ${digits(control.sd)})`);
      row.also.textContent = parts.join("; ");
      row.chance.hidden = !control;
      if (control) place(row.chance, control.mean);
    }

    say(verdict) {
      const box = by("verdict");
      box.className = `verdict ${verdict.word.toLowerCase().replaceAll(" ", "-")}`;
      by("word").replaceChildren(make("i", { "aria-hidden": "true" }, ICONS[verdict.word]), verdict.word);
      by("because").textContent = verdict.because;
      this.verdict = verdict;
    }

    drawChanges() {
      const { labelled } = this.facts;
      const found = this.engine.changes(this.now);
      const classes = labelled.questions[0].classes;
      for (const [kind, title] of Object.entries(KINDS)) {
        const count = kind === "all" ? found.length : found.filter((one) => one.kind === kind).length;
        this.rows[`kind ${kind}`].textContent = `${title} ${count}`;
      }
      const shown = found.filter((one) => this.kind === "all" || one.kind === this.kind);
      const figures = shown.slice(0, SHOWN).map((one) => {
        const thumb = makeThumb(this.facts, one.image);
        const should = one.kind === "other" ? ` (is ${classes[one.should]})` : "";
        const caption = make("figcaption", {}, make("s", {}, classes[one.was]), ` → ${classes[one.is]}${should}`, make("span", { className: "kind" }, KINDS[one.kind]));
        return make("figure", { className: one.kind, title: labelled.names[one.image] }, thumb, caption);
      });
      if (shown.length > SHOWN) figures.push(make("p", { className: "note" }, `and ${shown.length - SHOWN} more`));
      if (!shown.length) figures.push(make("p", { className: "note" }, "None."));
      by("changes").replaceChildren(...figures);
    }

    /** Worst group against what must stay, both measured here: the axes are those of the verdict. */
    axes(found) {
      const goals = Object.keys(this.facts.rules.goals).filter((name) => name in found.figures);
      const { kept } = this.facts.labelled;
      const mean = goals.reduce((sum, name) => sum + found.figures[name].value, 0) / Math.max(1, goals.length);
      return { x: found.figures[kept].value, y: goals.length ? mean : found.figures.overall.value, kept, goals };
    }

    /** Not before the first picture: every point is an edit that is measured. */
    buildFront() {
      const { front, presets } = this.facts;
      if (!front.length || this.points) return;
      this.points = [DeskState.NOTHING, ...presets, ...front].map((preset) => ({ preset, ...this.axes(this.put.measure(preset)) }));
      this.bounds = { x: boundsOf(this.points.map((one) => one.x)), y: boundsOf(this.points.map((one) => one.y)) };
      const box = by("front");
      const share = (axis, value) => `${(100 * (value - this.bounds[axis][0])) / (this.bounds[axis][1] - this.bounds[axis][0])}%`;
      for (const value of ticksOf(this.bounds.y)) {
        const beside = make("span", { className: "tick", "aria-hidden": "true" }, tickText(value));
        Object.assign(beside.style, { right: "calc(100% + 8px)", bottom: share("y", value), transform: "translateY(50%)" });
        const line = make("span", { className: "line", "aria-hidden": "true" });
        Object.assign(line.style, { left: 0, right: 0, height: "1px", bottom: share("y", value) });
        box.append(line, beside);
      }
      for (const value of ticksOf(this.bounds.x)) {
        const below = make("span", { className: "tick", "aria-hidden": "true" }, tickText(value));
        Object.assign(below.style, { left: share("x", value), top: "calc(100% + 4px)", transform: "translateX(-50%)" });
        box.append(below);
      }
      const { kept, goals } = this.points[0];
      const title = goals.length > 1 ? "worst groups, their mean" : goals.length ? this.facts.rules.goals[goals[0]] : "overall accuracy";
      const across = make("span", { className: "axis" }, `${this.facts.rules.kept[kept]}, %`);
      Object.assign(across.style, { left: "50%", top: "calc(100% + 22px)", transform: "translateX(-50%)" });
      const up = make("span", { className: "axis" }, `${title}, %`);
      Object.assign(up.style, { left: "8px", top: "-2px" });
      box.append(across, up, ...this.points.map((one) => this.buildPoint(one)), (this.ring = make("span", { className: "here", "aria-hidden": "true" })));
      this.moveRing(this.now);
    }

    buildPoint(point) {
      const { preset } = point;
      const said = `${preset.title}: worst group ${digits(point.y)} %, kept ${digits(point.x)} %`;
      const button = make("button", { type: "button", className: preset.kind, title: said, "aria-label": said });
      this.stand(button, point);
      button.addEventListener("click", () => this.put.load(preset));
      return button;
    }

    stand(node, point) {
      const share = (axis) => (point[axis] - this.bounds[axis][0]) / (this.bounds[axis][1] - this.bounds[axis][0]);
      node.style.left = `${Math.min(1, Math.max(0, share("x"))) * 100}%`;
      node.style.top = `${(1 - Math.min(1, Math.max(0, share("y")))) * 100}%`;
    }

    moveRing(now) {
      if (this.ring) this.stand(this.ring, this.axes(now));
    }
  }

  return { Panels };
})();
