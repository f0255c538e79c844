"use strict";
/* A picture of the desk, as a file: the grid and the figures, drawn anew at twice the size. */
const DeskPicture = (() => {
  const { shader } = DeskHeads;
  const WIDE = 1200;

  function draw(facts, state, heads, panels, engine) {
    const rows = facts.labelled ? engine.main : [];
    const layers = new Set(facts.heads.map((head) => head.layer)).size;
    const columns = Math.max(...facts.heads.map((head) => head.head)) + 1;
    const cell = Math.min(44, 620 / columns);
    const high = Math.max(150 + layers * (cell + 4) + 40, 170 + rows.length * 46);
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: WIDE * 2, height: high * 2 });
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const write = (text, x, y, size, name, weight = 400) => {
      pen.fillStyle = color(name);
      pen.font = `${weight} ${size}px system-ui, sans-serif`;
      pen.fillText(text, x, y);
    };
    pen.scale(2, 2);
    pen.fillStyle = color("paper");
    pen.fillRect(0, 0, WIDE, high);
    write(document.title, 32, 46, 22, "ink", 650);
    write(`${state.count} heads edited`, 32, 72, 14, "soft");
    drawGrid(pen, facts, state, heads, { cell, color });
    if (panels.verdict) write(panels.verdict.word, 740, 72, 26, "ink", 700);
    rows.forEach((figure, at) => {
      const was = engine.before.figures[figure.key].value;
      const now = panels.now.figures[figure.key].value;
      const y = 116 + at * 46;
      write(figure.title, 740, y, 14, "ink");
      write(`${(was * 100).toFixed(1)} → ${(now * 100).toFixed(1)} %`, 1060, y, 14, "ink", 650);
      pen.fillStyle = color("track");
      pen.fillRect(740, y + 9, 420, 5);
      pen.fillStyle = color(now < was ? "bad" : "good");
      pen.fillRect(740, y + 9, 420 * now, 5);
      pen.fillStyle = color("ink");
      pen.fillRect(740 + 420 * was - 1, y + 6, 2, 11);
    });
    return canvas;
  }

  function drawGrid(pen, facts, state, heads, { cell, color }) {
    const layers = [...new Set(facts.heads.map((head) => head.layer))].sort((one, other) => other - one);
    const shade = shader(facts.concepts[heads.concept].scores);
    facts.heads.forEach((head, at) => {
      const x = 72 + head.head * (cell + 4);
      const y = 100 + layers.indexOf(head.layer) * (cell + 4);
      pen.fillStyle = shade(at);
      pen.fillRect(x, y, cell, cell);
      const strength = state.strengths[at];
      if (!strength) return;
      pen.fillStyle = color("paper");
      pen.globalAlpha = 0.7;
      pen.fillRect(x, y + cell * (1 - strength), cell, cell * strength);
      pen.globalAlpha = 1;
      pen.strokeStyle = color("mark");
      pen.lineWidth = 2.5;
      pen.strokeRect(x + 1, y + 1, cell - 2, cell - 2);
    });
    pen.font = "12px system-ui, sans-serif";
    pen.fillStyle = color("soft");
    layers.forEach((layer, at) => pen.fillText(`L${layer}`, 36, 100 + at * (cell + 4) + cell / 2 + 4));
  }

  return { draw };
})();
