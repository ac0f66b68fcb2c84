"use strict";
(() => {
  const study = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const PLACE = `refine-wrap study ${study.study}`;
  const narrow = () => innerWidth <= 700;
  let rater = null, order = [], answers = [], since = null;

  // ---- what this browser keeps

  const place = (name) => `${PLACE} ${name}`;

  function recall(key) {
    try {
      return localStorage.getItem(key);
    } catch {
      $("unkept").hidden = false;
      return null;
    }
  }

  function keep(key, text) {
    try {
      if (text === null) localStorage.removeItem(key); else localStorage.setItem(key, text);
    } catch {
      $("unkept").hidden = false;
    }
  }

  function recallAnswers() {
    const text = recall(place(rater));
    if (text === null) return [];
    try {
      const found = JSON.parse(text);
      if (Array.isArray(found) && found.every((answer, i) => i < order.length && answer.trial === order[i].trial.id)) return found;
    } catch { /* said below, as for answers that do not fit */ }
    complain("The answers that this browser kept are damaged: you begin anew.");
    return [];
  }

  function complain(text) {
    $("trouble").textContent = text;
    $("trouble").hidden = false;
  }

  // ---- a rater

  // Numbers take the orders in turn, so that raters 1 to N meet N different ones; of a name, a hash (FNV-1a) tells.
  function orderNumber(name) {
    const count = study.orders.length;
    if (/^[0-9]+$/.test(name)) return Number((BigInt(name) + BigInt(count) - 1n) % BigInt(count));
    let hash = 2166136261;
    for (const byte of new TextEncoder().encode(name)) hash = Math.imul(hash ^ byte, 16777619) >>> 0;
    return hash % count;
  }

  function begin(name) {
    rater = name;
    order = study.orders[orderNumber(name)].map(([trial, flip]) => {
      const [one, other] = study.trials[trial].files;
      return { trial: study.trials[trial], left: flip ? other : one, right: flip ? one : other };
    });
    $("trouble").hidden = true;
    answers = recallAnswers();
    keep(PLACE, name);
    show();
  }

  function welcome() {
    rater = null;
    since = null;
    keep(PLACE, null);
    for (const id of ["trial", "neither", "end", "tools", "trouble"]) $(id).hidden = true;
    $("progress").textContent = "";
    $("start").hidden = false;
    $("rater").value = "";
    $("rater").focus();
  }

  // ---- a trial

  function pictures(entry) {
    return { left: entry.left, right: entry.right, ...entry.trial.beside };
  }

  const address = (file) => `pictures/${file}`;

  async function show() {
    since = null;
    const number = answers.length, entry = order[number];
    $("start").hidden = true;
    $("tools").hidden = false;
    $("back").disabled = !number;
    $("trial").hidden = !entry;
    $("neither").hidden = !entry || !study.ties;
    $("end").hidden = Boolean(entry);
    $("progress").textContent = entry ? `Pair ${number + 1} of ${order.length}` : `All ${order.length} pairs`;
    if (!entry) return;
    $("trial").setAttribute("aria-busy", "true");
    const shown = pictures(entry);
    for (const side of ["input", "reference"]) $(side).hidden = !(side in shown);
    const images = Object.entries(shown).map(([side, file]) => {
      const image = $(side).querySelector("img");
      image.src = address(file);
      return image;
    });
    try {
      await Promise.all(images.map((image) => image.decode()));
    } catch {
      if (answers.length === number && order[number] === entry)
        complain("A picture cannot be shown. If this page was opened inside of a zip file, unpack the whole folder first.");
      return;
    }
    // Meanwhile somebody may have gone back, or begun as another rater.
    if (answers.length !== number || order[number] !== entry) return;
    fit();
    $("trial").setAttribute("aria-busy", "false");
    since = performance.now();
    const next = order[number + 1];
    if (next) for (const file of Object.values(pictures(next))) new Image().src = address(file);
  }

  // All of one size: as they are, a whole number of times larger where there is room, smaller where there is none.
  function fit() {
    if ($("trial").hidden) return;
    const images = [...$("trial").querySelectorAll("img")].filter((image) => !image.closest("[hidden]"));
    const [width, height] = [images[0].naturalWidth, images[0].naturalHeight];
    if (!width) return;
    const columns = narrow() ? 2 : images.length;
    const room = Math.min((document.body.clientWidth - 40 - 34 * columns + (narrow() ? 66 : 0)) / columns / width, (innerHeight - 190) / height);
    const zoom = room >= 1 ? Math.min(Math.floor(room), 8) : Math.max(room, 40 / width);
    for (const image of images) {
      image.style.width = `${width * zoom}px`;
      image.style.height = `${height * zoom}px`;
      image.classList.toggle("pixels", zoom > 1);
    }
  }

  function answer(choice) {
    if (since === null) return;
    const { trial, left, right } = order[answers.length];
    const seconds = Math.round(performance.now() - since) / 1000;
    answers.push({ trial: trial.id, left, right, choice, seconds, at: new Date().toISOString() });
    keep(place(rater), JSON.stringify(answers));
    $("trouble").hidden = true;
    show();
  }

  function back() {
    if (rater === null || !answers.length) return;
    answers.pop();
    keep(place(rater), JSON.stringify(answers));
    $("trouble").hidden = true;
    show();
  }

  // ---- the results

  function download() {
    const results = { format: 1, kind: "results of a study", study: study.study, rater, trials: order.length, answers };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(results, null, 1) + "\n"], { type: "application/json" }));
    link.download = `results-${study.study.slice(0, 8)}-${rater.replace(/[^\p{L}\p{N}_-]+/gu, "_")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  // ---- events

  function onClick(id, work) {
    $(id).addEventListener("click", (event) => {
      // A pointer leaves no focus behind: the space bar would press that button again.
      if (event.detail) $(id).blur();
      work();
    });
  }

  for (const choice of ["left", "right", "none"]) onClick(choice, () => answer(choice));
  onClick("back", back);
  onClick("download", download);
  onClick("save", download);
  onClick("other", welcome);
  $("start").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("rater").value.trim().normalize();
    if (name) begin(name);
  });
  document.addEventListener("keydown", (event) => {
    if (rater === null || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const pressed = event.key === " " && event.target.closest("button");
    const work = {
      ArrowLeft: () => answer("left"),
      ArrowRight: () => answer("right"),
      Backspace: back,
      ...(study.ties && { ArrowDown: () => answer("none"), " ": () => answer("none") }),
    }[event.key];
    if (!work || pressed) return;
    event.preventDefault();
    work();
  });
  addEventListener("resize", fit);

  const last = recall(PLACE);
  if (last) begin(last); else welcome();
})();
