"use strict";
/* The desk itself: what the hand does, what follows at once, and what follows when it rests. */
(() => {
  const REST = 160;
  const by = (id) => document.getElementById(id);
  const { make, makeSlider, percent } = DeskHeads;
  const facts = JSON.parse(by("facts").textContent);
  const engine = new DeskEngine.Engine(facts, DeskEngine.decodeBytes(by("data").textContent));
  const mix = new DeskState.Mix(facts.heads.map((head) => head.name), facts.projections.map((one) => one.name));
  const next = DeskMath.random(1);
  let effect = facts.effects[0];
  let frame = 0;
  let rest = 0;

  const panels = new DeskPanels.Panels(facts, engine, { measure: measurePreset, load });
  const heads = new DeskHeads.Heads(facts, mix, changeHead);
  const sliders = facts.projections.map(buildOutput);

  function measurePreset(preset) {
    const other = new DeskState.Mix(mix.heads, mix.projections);
    other.load(preset);
    return engine.measure(other.strengths, other.outputs);
  }

  function changeHead(at, strength, begin) {
    if (begin) mix.keep();
    mix.strengths[at] = DeskState.clean(strength);
    changed();
  }

  function load(preset) {
    mix.keep();
    mix.load(preset);
    changed();
  }

  /** At most once a frame, however often the hand moves. */
  function changed() {
    if (!frame) frame = requestAnimationFrame(draw);
    clearTimeout(rest);
    rest = setTimeout(settle, REST);
  }

  function draw() {
    frame = 0;
    panels.isNothing = !mix.count && !mix.outputs.some(Boolean);
    panels.move(engine.measure(mix.strengths, mix.outputs));
    heads.update();
    sliders.forEach((slider, at) => slider(mix.outputs[at]));
    by("undo").disabled = !mix.past.length;
    by("redo").disabled = !mix.future.length;
  }

  function settle() {
    engine.refresh();
    panels.settle(engine.measure(mix.strengths, mix.outputs));
    if (facts.labelled) conclude(engine.control(mix.strengths, mix.outputs));
    try {
      history.replaceState(null, "", `#${mix.fragment()}`);
    } catch {
      // A frame without an address of its own, as in a notebook.
    }
  }

  /** The verdict comes last, when random heads were measured too; whatever moves meanwhile stops it. */
  function conclude(draws) {
    const { done, value } = draws.next();
    if (!done) {
      rest = setTimeout(() => conclude(draws), 0);
      return;
    }
    panels.conclude(value.beside);
    if (!panels.points) setTimeout(() => panels.buildFront(), 0);
  }

  function buildOutput(projection, at) {
    const { input, shown, set } = makeSlider((strength, begin) => {
      if (begin) mix.keep();
      mix.outputs[at] = DeskState.clean(strength);
      changed();
    });
    by("outputs").append(make("label", {}, make("span", {}, projection.name), shown, input));
    return set;
  }

  function fillChoices() {
    facts.concepts.forEach((one, at) => by("concept").append(make("option", { value: at }, one.name)));
    const named = [DeskState.NOTHING, ...facts.presets, ...facts.front];
    const title = (one) => (one.kind === "front" ? `By labels: ${one.title}` : one.kind === "size" ? `By labels, smaller: ${one.title}` : one.kind === "recipe" ? `Recipe ${one.title}` : one.title);
    by("preset").append(make("option", { value: "", disabled: true, selected: true }, "choose …"));
    named.forEach((one, at) => by("preset").append(make("option", { value: at }, title(one))));
    by("preset").append(make("option", { value: "random" }, "As many heads by chance"));
    by("preset").addEventListener("change", () => {
      const chosen = by("preset").value;
      by("preset").value = "";
      if (chosen !== "random") return load(named[chosen]);
      mix.keep();
      mix.strengths.set(DeskVerdict.drawLike(facts.heads.map((head) => head.layer), mix.count ? mix.strengths : defaultStrengths(), next));
      return changed();
    });
    const names = { distilled: "distilled: a plain checkpoint", direct: "direct: extra nodes at the readout" };
    facts.effects.forEach((one) => by("effect").append(make("option", { value: one }, names[one])));
    by("effect").addEventListener("change", () => {
      effect = by("effect").value;
      sayEffect();
    });
  }

  /** Of the default edit, for a draw by chance where nothing is edited yet. */
  function defaultStrengths() {
    const other = new DeskState.Mix(mix.heads, mix.projections);
    other.load(facts.presets.find((one) => one.kind === "default") || DeskState.NOTHING);
    return other.strengths;
  }

  function sayEffect() {
    const { fidelity } = facts;
    const said = fidelity
      ? `the checkpoint reproduces ${percent(fidelity.explained)} of what the direct default edit changes, on ${fidelity.images} images left out.`
      : "how near a checkpoint comes, clipedit apply says.";
    by("effect-note").textContent = effect === "direct" ? "Figures here are exactly those of this recipe." : `Figures here are of the direct edit; ${said}`;
  }

  function sayWhatIsMeasured() {
    const { labelled } = facts;
    by("title").textContent = `${facts.model.name}: what carries ${facts.concept}?`;
    const held = facts.concepts[0];
    by("footer").textContent = `${held ? `${held.because[0].toUpperCase()}${held.because.slice(1)}. ` : ""}${labelled ? `Measured: ${labelled.measure}. ` : ""}Means from ${facts.calibration} calibration images. Made by clipedit; texts by TextSpan (Gandelsman et al., ICLR 2024).`;
    by("caution").textContent = labelled
      ? `On ${labelled.images}${labelled.total > labelled.images ? ` of ${labelled.total}` : ""} images. Whoever chooses an edit by these images has fitted it to them: measure the recipe on others.`
      : "";
    by("output-section").hidden = !facts.projections.length;
  }

  function save(name, blob) {
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    say(`${name} is on its way`);
  }

  function say(text) {
    by("said").textContent = text;
    by("said").classList.add("shown");
    setTimeout(() => by("said").classList.remove("shown"), 2600);
  }

  function step(which) {
    if (mix[which]()) changed();
  }

  function wire() {
    by("undo").addEventListener("click", () => step("undo"));
    by("redo").addEventListener("click", () => step("redo"));
    by("recipe").addEventListener("click", () => save("recipe.yaml", new Blob([DeskState.writeRecipe(mix, facts, effect)], { type: "application/yaml" })));
    by("picture").addEventListener("click", () => {
      DeskPicture.draw(facts, mix, heads, panels, engine).toBlob((blob) => save("desk.png", blob));
    });
    by("open").addEventListener("click", () => by("file").click());
    by("file").addEventListener("change", async () => {
      try {
        load({ ...DeskState.NOTHING, ...DeskState.readRecipe(await by("file").files[0].text(), mix) });
      } catch (error) {
        say(`Cannot open this recipe: ${error.message}.`);
      }
      by("file").value = "";
    });
    by("concept").addEventListener("change", () => {
      heads.concept = Number(by("concept").value);
      heads.paint();
    });
    document.querySelectorAll("input[name=color]").forEach((box) =>
      box.addEventListener("change", () => {
        heads.color = box.value;
        heads.paint();
      }),
    );
    addEventListener("keydown", (event) => {
      if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
      event.preventDefault();
      step(event.shiftKey ? "redo" : "undo");
    });
    addEventListener("hashchange", () => {
      mix.keep();
      if (mix.readFragment(location.hash)) changed();
    });
  }

  fillChoices();
  sayEffect();
  sayWhatIsMeasured();
  wire();
  if (!mix.readFragment(location.hash)) mix.load(facts.presets[0] || DeskState.NOTHING);
  const scores = facts.concepts[0].scores;
  heads.look(scores.indexOf(Math.max(...scores)));
  draw();
  // After the first picture: intervals, random heads and then the front take longer than all the rest.
  rest = setTimeout(settle, 0);
})();
