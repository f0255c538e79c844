"use strict";
/* A picture of the desk, as a file: the grid beside the verdict and its figures, drawn anew at twice the size. */
const DeskPicture = (() => {
  const { percent, shader } = DeskHeads;
  const WIDE = 1200;
  const EDGE = 36;
  const TOP = 124;
  const RIGHT = 730;
  const EACH = 46;

  function draw(facts, state, heads, panels, engine) {
    const layers = [...new Set(facts.heads.map((head) => head.layer))].sort((one, other) => other - one);
    const columns = Math.max(...facts.heads.map((head) => head.head)) + 1;
    const cell = Math.min(62, 600 / columns - 4);
    const rows = facts.labelled ? panels.ordered : [];
    const said = panels.verdict?.because || "";
    const canvas = document.createElement("canvas");
    const pen = canvas.getContext("2d");
    pen.font = "14px system-ui, sans-serif";
    const lines = wrap(pen, said, WIDE - EDGE - RIGHT);
    const figures = TOP - 14 + lines.length * 20 + 26;
    const grid = TOP + layers.length * (cell + 4);
    const high = Math.max(grid + 30, figures + rows.length * EACH) + 34;
    Object.assign(canvas, { width: WIDE * 2, height: high * 2 });
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const write = (text, x, y, { size = 14, name = "ink", weight = 400, align = "left" } = {}) => {
      Object.assign(pen, { fillStyle: color(name), font: `${weight} ${size}px system-ui, sans-serif`, textAlign: align });
      pen.fillText(text, x, y);
    };
    pen.scale(2, 2);
    pen.fillStyle = color("paper");
    pen.fillRect(0, 0, WIDE, high);
    write(document.getElementById("title").textContent, EDGE, 50, { size: 24, weight: 700 });
    write(describe(state), EDGE, 76, { name: "soft" });
    drawGrid({ pen, color, write, cell, layers, columns }, facts, state, heads);
    write(`Shade: share of ${facts.concepts[heads.concept].name}’s variance; hatched: taken out`, EDGE + 34, grid + 20, { size: 12, name: "soft" });
    const tone = { HELPS: "good", HARMS: "bad" }[panels.verdict?.word] || "ink";
    write(panels.verdict?.word || "", RIGHT, 80, { size: 28, weight: 700, name: tone });
    lines.forEach((line, at) => write(line, RIGHT, TOP - 14 + at * 20));
    rows.forEach((figure, at) => {
      const [was, now] = [engine.before.figures[figure.key].value, panels.now.figures[figure.key].value];
      drawFigure({ pen, color, write }, figure, { was, now, y: figures + at * EACH });
    });
    return canvas;
  }

  /** `5 heads taken out; output projection: location 53 %`. */
  function describe(state) {
    const outputs = state.projections.map((name, at) => [name, state.outputs[at]]).filter(([, value]) => value);
    const projected = outputs.length ? `; output projection: ${outputs.map(([name, value]) => `${name} ${percent(value)}`).join(", ")}` : "";
    return `${state.count} of ${state.heads.length} heads taken out${projected}`;
  }

  function wrap(pen, text, width) {
    const lines = [""];
    for (const word of text.split(" ")) {
      const longer = `${lines.at(-1)} ${word}`.trim();
      if (pen.measureText(longer).width <= width) lines[lines.length - 1] = longer;
      else lines.push(word);
    }
    return lines;
  }

  function drawFigure({ pen, color, write }, figure, { was, now, y }) {
    const wide = WIDE - EDGE - RIGHT;
    write(figure.title[0].toUpperCase() + figure.title.slice(1), RIGHT, y);
    write(`${(was * 100).toFixed(1)} → ${(now * 100).toFixed(1)} %`, WIDE - EDGE, y, { weight: 650, align: "right" });
    pen.fillStyle = color("track");
    pen.fillRect(RIGHT, y + 10, wide, 5);
    pen.fillStyle = color(now < was ? "bad" : "good");
    pen.fillRect(RIGHT, y + 10, wide * now, 5);
    // Where it was.
    pen.fillStyle = color("ink");
    pen.fillRect(RIGHT + wide * was - 1, y + 7, 2, 11);
  }

  function drawGrid({ pen, color, write, cell, layers, columns }, facts, state, heads) {
    const shade = shader(facts.concepts[heads.concept].scores);
    const left = EDGE + 34;
    layers.forEach((layer, at) => write(`L${layer}`, EDGE, TOP + at * (cell + 4) + cell / 2 + 4, { size: 12, name: "soft" }));
    for (let at = 0; at < columns; at++) write(columns > 10 ? at : `H${at}`, left + at * (cell + 4) + cell / 2, TOP - 10, { size: 12, name: "soft", align: "center" });
    facts.heads.forEach((head, at) => {
      const x = left + head.head * (cell + 4);
      const y = TOP + layers.indexOf(head.layer) * (cell + 4);
      pen.save();
      pen.beginPath();
      pen.roundRect(x, y, cell, cell, cell * 0.2);
      pen.clip();
      pen.fillStyle = shade(at);
      pen.fillRect(x, y, cell, cell);
      const strength = state.strengths[at];
      Object.assign(pen, { strokeStyle: color("mark"), lineWidth: 1.5 });
      if (strength) hatch(pen, x, y + cell * (1 - strength), cell, cell * strength);
      pen.restore();
      if (!strength) return;
      pen.lineWidth = 2.5;
      pen.beginPath();
      pen.roundRect(x + 1, y + 1, cell - 2, cell - 2, cell * 0.2);
      pen.stroke();
    });
  }

  function hatch(pen, x, y, wide, high) {
    pen.save();
    pen.beginPath();
    pen.rect(x, y, wide, high);
    pen.clip();
    pen.beginPath();
    for (let far = 6; far < wide + high; far += 6) {
      pen.moveTo(x + far, y);
      pen.lineTo(x + far - high, y + high);
    }
    pen.stroke();
    pen.restore();
  }

  return { draw };
})();
