"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data.items.length) return;

  const $ = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));
  const ICON = "http://www.w3.org/2000/svg";
  const MAX_ZOOM = 32; // CSS pixels a picture's pixel

  const stage = $("stage");
  const crops = $("crops");
  const first = data.sources.findIndex((source) => !source.reference);
  const state = {
    item: 0,
    a: first,
    b: first === 0 ? 1 : 0,
    mode: "slider",
    split: 0.5,
    side: "b", // which of the two is shown in flip mode
    view: { x: 0.5, y: 0.5, zoom: 1 }, // centre as a share of the picture; zoom 1 = fits
    crop: { x: 0, y: 0, z: 1 }, // centre in the picture's pixels; CSS pixels a pixel
  };
  if (data.sources.length > 2) state.b = data.sources.findIndex((source, index) => index !== state.a && !source.reference);
  const item = () => data.items[state.item];

  /* ---- pictures ---- */

  // Where an embedded picture lies in the common frame, and how many pixels it has.
  const whole = (image) => ({ id: image.id, x: 0, y: 0, w: item().width, h: item().height, pw: item().page[0], ph: item().page[1] });
  const original = (image) => image.detail || whole(image);

  const source = (id) => {
    const script = $(id);
    return `data:${script.dataset.mime};base64,${script.textContent}`;
  };

  const describe = (index) => {
    const image = item().images[index];
    return `${item().name}, ${data.sources[index].label}${image.figures ? `, ${image.figures}` : ""}`;
  };

  function newImage(index, rect) {
    const image = make("img", item().images[index].alpha ? "alpha" : "");
    image.alt = describe(index);
    image.decoding = "sync";
    image.draggable = false;
    image.src = source(rect.id);
    image.rect = rect;
    image.style.width = `${rect.pw}px`;
    image.style.height = `${rect.ph}px`;
    return image;
  }

  // Draws `image` so that the frame's point (x, y) is in the middle of a box, at z CSS pixels a frame pixel.
  function place(image, box, x, y, z) {
    const { rect } = image;
    const sx = (rect.w * z) / rect.pw;
    const sy = (rect.h * z) / rect.ph;
    const left = box.w / 2 + (rect.x - x) * z;
    const top = box.h / 2 + (rect.y - y) * z;
    image.style.transform = `translate(${left.toFixed(3)}px, ${top.toFixed(3)}px) scale(${sx}, ${sy})`;
    image.style.setProperty("--check", `${16 / sx}px`);
    image.classList.toggle("pixels", Math.min(sx, sy) >= 2);
  }

  const boxOf = (pane) => ({ w: pane.clientWidth, h: pane.clientHeight });

  /* ---- the stage ---- */

  const pair = () => (state.mode === "side" ? data.sources.map((_, index) => index) : [state.a, state.b]);

  function buildStage() {
    stage.replaceChildren();
    stage.dataset.mode = state.mode;
    if (state.mode === "side") {
      for (const index of pair()) {
        const pane = make("div", "pane");
        const layers = make("div", "layers");
        layers.append(newImage(index, whole(item().images[index])));
        const tag = make("span", "tag left", data.sources[index].label);
        if (item().images[index].figures) tag.append(make("small", "", item().images[index].figures));
        pane.append(layers, tag);
        stage.append(pane);
      }
    } else {
      const pane = make("div", "pane");
      const layers = make("div", "layers");
      // The left-hand picture lies on top in slider mode, so that it is the one that is cut.
      for (const index of [state.b, state.a]) {
        const layer = make("div", "layer");
        layer.append(newImage(index, whole(item().images[index])));
        layers.append(layer);
      }
      pane.append(layers);
      stage.append(pane, chooser("a", "left"), chooser("b", "right"));
      if (state.mode === "slider") stage.append(handle());
    }
    const marker = make("div");
    marker.id = "marker";
    stage.append(marker);
    layoutStage();
  }

  function chooser(which, side) {
    const select = make("select", `tag ${side}`);
    select.setAttribute("aria-label", side === "left" ? "Left-hand version" : "Right-hand version");
    data.sources.forEach((entry, index) => select.append(new Option(entry.label, index, false, index === state[which])));
    select.addEventListener("change", () => choose(which, Number(select.value)));
    return select;
  }

  function handle() {
    const element = make("div");
    element.id = "handle";
    element.tabIndex = 0;
    element.setAttribute("role", "slider");
    element.setAttribute("aria-orientation", "horizontal");
    element.setAttribute("aria-valuemin", "0");
    element.setAttribute("aria-valuemax", "100");
    element.setAttribute("aria-label", `Divider between ${data.sources[state.a].label} and ${data.sources[state.b].label}`);
    const svg = document.createElementNS(ICON, "svg");
    svg.setAttribute("viewBox", "0 0 20 20");
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS(ICON, "path");
    path.setAttribute("d", "m7 5-5 5 5 5M13 5l5 5-5 5");
    svg.append(path);
    element.append(svg);
    element.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: -0.02, ArrowDown: -0.02, ArrowRight: 0.02, ArrowUp: 0.02, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 };
      if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      setSplit(state.split + moves[event.key]);
    });
    return element;
  }

  function setSplit(value) {
    state.split = clamp(value, 0, 1);
    const element = $("handle");
    if (!element) return;
    const percent = Math.round(state.split * 100);
    element.style.left = `${state.split * 100}%`;
    element.setAttribute("aria-valuenow", String(percent));
    element.setAttribute("aria-valuetext", `${percent}% ${data.sources[state.a].label}, ${100 - percent}% ${data.sources[state.b].label}`);
    stage.querySelectorAll(".layer")[1].style.clipPath = `inset(0 ${100 - state.split * 100}% 0 0)`;
  }

  const fit = (box) => Math.min(box.w / item().width, box.h / item().height);

  // The picture never leaves its box; where it is smaller than the box it is centred.
  function settle(box) {
    const { view } = state;
    const { width, height } = item();
    view.zoom = clamp(view.zoom, 1, Math.max(1, MAX_ZOOM / fit(box)));
    const z = fit(box) * view.zoom;
    const [halfX, halfY] = [box.w / 2 / z / width, box.h / 2 / z / height];
    view.x = halfX >= 0.5 ? 0.5 : clamp(view.x, halfX, 1 - halfX);
    view.y = halfY >= 0.5 ? 0.5 : clamp(view.y, halfY, 1 - halfY);
    return z;
  }

  function stageSize() {
    const { width, height } = item();
    const available = stage.clientWidth;
    const tallest = Math.max(240, window.innerHeight * 0.72);
    if (state.mode !== "side") {
      stage.style.gridTemplateColumns = "";
      stage.style.height = `${Math.round(Math.min(tallest, (available * height) / width))}px`;
      return;
    }
    // As many columns as make the pictures largest within the height.
    const count = stage.querySelectorAll(".pane").length;
    let best = { columns: 1, size: 0, high: 0 };
    for (let columns = 1; columns <= count; columns += 1) {
      const rows = Math.ceil(count / columns);
      const [w, h] = [(available - 3 * (columns - 1)) / columns, (Math.max(tallest, 480) - 3 * (rows - 1)) / rows];
      const size = Math.min(w / width, h / height);
      if (size > best.size) best = { columns, size, high: Math.min(h, (w * height) / width) };
    }
    stage.style.height = "";
    stage.style.gridTemplateColumns = `repeat(${best.columns}, minmax(0, 1fr))`;
    for (const pane of stage.querySelectorAll(".pane")) pane.style.height = `${Math.round(best.high)}px`;
  }

  function layoutStage() {
    stageSize();
    drawStage();
  }

  function drawStage() {
    const panes = [...stage.querySelectorAll(".pane")];
    const box = boxOf(panes[0]);
    if (!box.w || !box.h) return;
    const z = settle(box);
    const { view } = state;
    for (const pane of panes) {
      for (const image of pane.querySelectorAll("img")) place(image, box, view.x * item().width, view.y * item().height, z);
      pane.style.touchAction = view.zoom > 1 || state.mode === "slider" ? "none" : "pan-y";
    }
    // At the fitting size a slider still lets a finger scroll the page up and down.
    if (state.mode === "slider" && view.zoom === 1) panes[0].style.touchAction = "pan-y";
    stage.dataset.zoomed = String(view.zoom > 1.001);
    $("zoom-level").textContent = view.zoom > 1.001 ? `${Math.round(z * 100)}%` : "Fit";
    $("zoom-out").disabled = view.zoom <= 1.001;
    $("zoom-in").disabled = z >= MAX_ZOOM - 0.001;
    if (state.mode === "slider") setSplit(state.split);
    if (state.mode === "flip") showFlip();
    drawMarker(box, z);
  }

  function showFlip() {
    const layers = stage.querySelectorAll(".layer");
    layers[0].hidden = state.side !== "b";
    layers[1].hidden = state.side !== "a";
    stage.querySelectorAll(".tag").forEach((tag, index) => {
      const on = (index === 0) === (state.side === "a");
      tag.classList.toggle("on", on);
      tag.classList.toggle("off", !on);
    });
  }

  function flip() {
    if (state.mode !== "flip") {
      state.mode = "flip";
      state.side = "b";
      refreshMode();
    } else {
      state.side = state.side === "a" ? "b" : "a";
      showFlip();
    }
    $("announce").textContent = `Shown: ${data.sources[state[state.side]].label}`;
  }

  /* ---- the close-up ---- */

  function buildCrops() {
    crops.replaceChildren();
    const count = data.sources.length;
    const columns = window.innerWidth <= 700 ? Math.min(2, count) : Math.min(count, 5);
    crops.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
    data.sources.forEach((entry, index) => {
      const image = item().images[index];
      const figure = make("figure");
      const pane = make("div", "pane");
      const picture = newImage(index, original(image));
      picture.alt = `Close-up: ${describe(index)}`;
      pane.append(picture);
      const caption = make("figcaption", "caption");
      caption.append(make("b", "", entry.label));
      if (entry.reference) caption.append(make("span", "", "reference"));
      if (image.figures) caption.append(make("span", "", image.figures));
      if (image.resized) caption.append(make("span", "", `own pixels, ${image.size[0]} × ${image.size[1]}`));
      figure.append(pane, caption);
      crops.append(figure);
    });
    // Two pictures in a wide window would make squares that fill the screen.
    const width = crops.firstChild.firstChild.clientWidth;
    const high = Math.round(Math.min(width, Math.max(220, window.innerHeight * 0.42)));
    for (const pane of crops.querySelectorAll(".pane")) pane.style.height = `${high}px`;
  }

  function homeCrop() {
    const box = boxOf(crops.querySelector(".pane"));
    const { x, y, size } = item().crop;
    state.crop = { x: x + size / 2, y: y + size / 2, z: Math.min(box.w, box.h) / size };
    drawCrops();
  }

  function drawCrops() {
    const panes = crops.querySelectorAll(".pane");
    const box = boxOf(panes[0]);
    if (!box.w) return;
    const [left, top, right, bottom] = item().bounds;
    const { crop } = state;
    const least = Math.max(box.w / (right - left), box.h / (bottom - top));
    crop.z = clamp(crop.z, Math.min(least, MAX_ZOOM), Math.max(least, MAX_ZOOM));
    const [halfX, halfY] = [box.w / 2 / crop.z, box.h / 2 / crop.z];
    crop.x = clamp(crop.x, left + halfX, right - halfX);
    crop.y = clamp(crop.y, top + halfY, bottom - halfY);
    for (const pane of panes) place(pane.querySelector("img"), box, crop.x, crop.y, crop.z);
    const home = item().crop;
    const atHome = Math.abs(crop.x - home.x - home.size / 2) < home.size / 2 && Math.abs(crop.y - home.y - home.size / 2) < home.size / 2;
    const [w, h] = [Math.round(2 * halfX), Math.round(2 * halfY)];
    $("close-up-where").textContent = `${atHome ? "where they differ most: " : ""}${w} × ${h} px at ${Math.round(crop.x - halfX)}, ${Math.round(crop.y - halfY)} · original pixels`;
    $("crop-out").disabled = crop.z <= least + 1e-6;
    $("crop-in").disabled = crop.z >= MAX_ZOOM;
    const stageBox = boxOf(stage.querySelector(".pane"));
    if (stageBox.w) drawMarker(stageBox, fit(stageBox) * state.view.zoom);
  }

  // Shows on the stage which place the close-up is about.
  function drawMarker(box, z) {
    const marker = $("marker");
    const pane = crops.querySelector(".pane");
    if (!pane || state.mode === "side") {
      marker.hidden = true;
      return;
    }
    const { crop, view } = state;
    const own = boxOf(pane);
    marker.hidden = false;
    marker.style.left = `${box.w / 2 + (crop.x - own.w / 2 / crop.z - view.x * item().width) * z}px`;
    marker.style.top = `${box.h / 2 + (crop.y - own.h / 2 / crop.z - view.y * item().height) * z}px`;
    marker.style.width = `${(own.w / crop.z) * z}px`;
    marker.style.height = `${(own.h / crop.z) * z}px`;
  }

  const locating = (on) => document.body.classList.toggle("locating", on);

  /* ---- choosing ---- */

  function show(index) {
    const last = data.items.length - 1;
    state.item = clamp(index, 0, last);
    state.view = { x: 0.5, y: 0.5, zoom: 1 };
    $("pick").value = String(state.item);
    $("previous").disabled = state.item === 0;
    $("next").disabled = state.item === last;
    $("notes").textContent = [`${item().width} × ${item().height}`, ...item().notes].join(" · ");
    buildCrops();
    buildStage();
    homeCrop();
    $("announce").textContent = `Picture ${state.item + 1} of ${last + 1}: ${item().name}`;
    for (const row of document.querySelectorAll("tr[data-item]")) {
      if (Number(row.dataset.item) === state.item) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    if (location.hash !== `#${state.item + 1}`) location.replace(`#${state.item + 1}`);
  }

  function choose(which, index) {
    if (index >= data.sources.length) return;
    const other = which === "a" ? "b" : "a";
    // Choosing what the other side shows swaps the two: a picture beside itself tells nothing.
    if (state[other] === index) state[other] = state[which];
    state[which] = index;
    buildStage();
    $("announce").textContent = `Left: ${data.sources[state.a].label}, right: ${data.sources[state.b].label}`;
  }

  function setMode(mode) {
    state.mode = mode;
    state.side = "b";
    refreshMode();
  }

  function refreshMode() {
    for (const button of document.querySelectorAll("[data-mode]:is(button)")) button.setAttribute("aria-pressed", String(button.dataset.mode === state.mode));
    $("gain-box").hidden = state.mode !== "difference";
    buildStage();
  }

  function setGain() {
    const gain = 2 ** Number($("gain").value);
    stage.style.setProperty("--gain", String(gain));
    $("gain-text").textContent = String(gain);
    $("gain").setAttribute("aria-valuetext", `${gain} times`);
  }

  /* ---- pan and zoom: one reading of pointers for stage and close-up ---- */

  function zoomStage(factor, at) {
    const box = boxOf(stage.querySelector(".pane"));
    const before = settle(box);
    const { view } = state;
    view.zoom *= factor;
    const after = clamp(fit(box) * view.zoom, fit(box), Math.max(fit(box), MAX_ZOOM));
    view.zoom = after / fit(box);
    // The point under the pointer stays where it is.
    const [dx, dy] = at ? [at.x - box.w / 2, at.y - box.h / 2] : [0, 0];
    view.x += (dx / before - dx / after) / item().width;
    view.y += (dy / before - dy / after) / item().height;
    drawStage();
  }

  function panStage(dx, dy) {
    const z = settle(boxOf(stage.querySelector(".pane")));
    state.view.x -= dx / z / item().width;
    state.view.y -= dy / z / item().height;
    drawStage();
  }

  function zoomCrops(factor, at) {
    const box = boxOf(crops.querySelector(".pane"));
    const [left, top, right, bottom] = item().bounds;
    const before = state.crop.z;
    const least = Math.max(box.w / (right - left), box.h / (bottom - top));
    const after = clamp(before * factor, Math.min(least, MAX_ZOOM), Math.max(least, MAX_ZOOM));
    const [dx, dy] = at ? [at.x - box.w / 2, at.y - box.h / 2] : [0, 0];
    state.crop.x += dx / before - dx / after;
    state.crop.y += dy / before - dy / after;
    state.crop.z = after;
    drawCrops();
  }

  function panCrops(dx, dy) {
    state.crop.x -= dx / state.crop.z;
    state.crop.y -= dy / state.crop.z;
    drawCrops();
  }

  const within = (event, pane) => {
    const bounds = pane.getBoundingClientRect();
    return { x: event.clientX - bounds.left, y: event.clientY - bounds.top };
  };

  function gestures(root, { zoom, pan, begin, drag, tap }) {
    const down = new Map();
    let pane = null;
    let kind = "pan";
    let moved = false;
    root.addEventListener("pointerdown", (event) => {
      if (event.target.closest("select") || (event.pointerType === "mouse" && event.button !== 0)) return;
      pane = event.target.closest(".pane") || root.querySelector(".pane");
      down.set(event.pointerId, { x: event.clientX, y: event.clientY });
      root.setPointerCapture(event.pointerId);
      if (down.size === 1) {
        moved = false;
        kind = begin ? begin(event, pane) : "pan";
        // Keeps the keyboard where it was: a mouse drag must not turn the arrow keys into moves of the divider.
        event.preventDefault();
      }
    });
    root.addEventListener("pointermove", (event) => {
      const before = down.get(event.pointerId);
      if (!before) return;
      const now = { x: event.clientX, y: event.clientY };
      if (down.size === 2) {
        const other = [...down.entries()].find(([id]) => id !== event.pointerId)[1];
        const spread = (point) => Math.hypot(point.x - other.x, point.y - other.y);
        const bounds = pane.getBoundingClientRect();
        pan((now.x - before.x) / 2, (now.y - before.y) / 2);
        if (spread(before) > 0) zoom(spread(now) / spread(before), { x: (now.x + other.x) / 2 - bounds.left, y: (now.y + other.y) / 2 - bounds.top });
        moved = true;
      } else if (kind === "pan") {
        pan(now.x - before.x, now.y - before.y);
      } else if (drag) {
        drag(event, pane);
      }
      if (Math.hypot(now.x - before.x, now.y - before.y) > 3) moved = true;
      down.set(event.pointerId, now);
    });
    const up = (event) => {
      if (!down.delete(event.pointerId)) return;
      if (event.type === "pointerup" && !moved && down.size === 0 && tap) tap(event, pane);
    };
    root.addEventListener("pointerup", up);
    root.addEventListener("pointercancel", up);
    root.addEventListener(
      "wheel",
      (event) => {
        const over = event.target.closest(".pane") || root.querySelector(".pane");
        const step = event.deltaMode === 1 ? 20 : 1;
        const factor = Math.exp(-clamp(event.deltaY * step, -120, 120) * (event.ctrlKey ? 0.01 : 0.0022));
        // Zooming out of a picture that is all in view scrolls the page instead.
        if (factor < 1 && root === stage && state.view.zoom <= 1.001 && !event.ctrlKey) return;
        event.preventDefault();
        zoom(factor, within(event, over));
      },
      { passive: false },
    );
  }

  gestures(stage, {
    zoom: zoomStage,
    pan: panStage,
    begin(event, pane) {
      if (state.mode !== "slider") return "pan";
      const x = within(event, pane).x;
      const near = Math.abs(x - state.split * pane.clientWidth) <= 24 || event.target.closest("#handle");
      if (!near && state.view.zoom > 1.001) return "pan";
      // A finger that only means to scroll must not throw the divider: it moves with the drag or on a tap.
      if (event.pointerType === "mouse") setSplit(x / pane.clientWidth);
      return "split";
    },
    drag: (event, pane) => setSplit(within(event, pane).x / pane.clientWidth),
    tap(event, pane) {
      if (state.mode === "flip") flip();
      else if (state.mode === "slider" && state.view.zoom <= 1.001) setSplit(within(event, pane).x / pane.clientWidth);
    },
  });
  gestures(crops, { zoom: zoomCrops, pan: panCrops });

  stage.addEventListener("dblclick", (event) => {
    const pane = event.target.closest(".pane");
    if (!pane) return;
    const box = boxOf(pane);
    const at = within(event, pane);
    const z = fit(box) * state.view.zoom;
    state.crop.x = state.view.x * item().width + (at.x - box.w / 2) / z;
    state.crop.y = state.view.y * item().height + (at.y - box.h / 2) / z;
    drawCrops();
    locating(true);
  });
  $("close-up").addEventListener("pointerenter", () => locating(true));
  $("close-up").addEventListener("pointerleave", () => locating(false));
  $("close-up").addEventListener("focusin", () => locating(true));
  $("close-up").addEventListener("focusout", () => locating(false));

  crops.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [48, 0], ArrowRight: [-48, 0], ArrowUp: [0, 48], ArrowDown: [0, -48] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) panCrops(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") zoomCrops(1.25);
    else if (event.key === "-") zoomCrops(0.8);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  /* ---- buttons and keys ---- */

  $("pick").append(...data.items.map((entry, index) => new Option(`${index + 1} / ${data.items.length}   ${entry.name}`, index)));
  $("pick").addEventListener("change", () => show(Number($("pick").value)));
  $("previous").addEventListener("click", () => show(state.item - 1));
  $("next").addEventListener("click", () => show(state.item + 1));
  $("zoom-in").addEventListener("click", () => zoomStage(1.5));
  $("zoom-out").addEventListener("click", () => zoomStage(1 / 1.5));
  $("zoom-fit").addEventListener("click", () => zoomStage(1e-9));
  $("crop-in").addEventListener("click", () => zoomCrops(1.25));
  $("crop-out").addEventListener("click", () => zoomCrops(0.8));
  $("crop-home").addEventListener("click", homeCrop);
  $("gain").addEventListener("input", setGain);
  $("keys").addEventListener("click", () => $("help").showModal());
  for (const button of document.querySelectorAll("button[data-mode]")) button.addEventListener("click", () => setMode(button.dataset.mode));

  // What was clicked gives the keyboard back, so that space flips and arrows page; whoever tabbed there keeps the focus.
  let byPointer = false;
  document.addEventListener("pointerdown", () => (byPointer = true), true);
  document.addEventListener("keydown", () => (byPointer = false), true);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button && byPointer) button.blur();
  });
  document.addEventListener("change", (event) => {
    if (event.target instanceof HTMLSelectElement && byPointer) event.target.blur();
  });

  const KEYS = {
    ArrowLeft: () => show(state.item - 1),
    ArrowRight: () => show(state.item + 1),
    " ": flip,
    s: () => setMode("slider"),
    b: () => setMode("side"),
    d: () => setMode("difference"),
    c: homeCrop,
    "+": () => zoomStage(1.5),
    "=": () => zoomStage(1.5),
    "-": () => zoomStage(1 / 1.5),
    0: () => zoomStage(1e-9),
    "?": () => $("help").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    const target = event.target;
    if (target.matches("select, input, textarea")) return;
    if (event.key === " " && target.matches("button, a, summary")) return;
    const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
    if (digit) {
      choose(event.shiftKey ? "a" : "b", Number(digit[1]) - 1);
      event.preventDefault();
      return;
    }
    const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  const fromHash = () => {
    const number = Number(location.hash.slice(1));
    return Number.isInteger(number) && number >= 1 && number <= data.items.length ? number - 1 : null;
  };
  window.addEventListener("hashchange", () => {
    const index = fromHash();
    if (index === null || index === state.item) return;
    show(index);
    $("viewer").scrollIntoView({ block: "start" });
  });
  document.addEventListener("click", (event) => {
    // A second click on the same row has no new hash, yet means "show me".
    if (event.target.closest("tr[data-item] a")) $("viewer").scrollIntoView({ block: "start" });
  });

  $("viewer").hidden = false;
  setGain();
  refreshMode();
  show(fromHash() ?? 0);
  let width = 0;
  new ResizeObserver(() => {
    if (document.documentElement.clientWidth === width) return;
    width = document.documentElement.clientWidth;
    buildCrops();
    layoutStage();
    homeCrop();
  }).observe(document.documentElement);
})();
