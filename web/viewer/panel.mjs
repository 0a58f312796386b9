/** The viewer on a node: a picture of the model, a bar of controls above it, its figures below. */
import { addStyle } from "./panel.css.mjs";
import { Model } from "./model.mjs";
import { Stage } from "./stage.mjs";
import { VIEWS } from "./views.mjs";

/** @typedef {{name: string, url: string}} Shown */

export class Panel {
  /** @param {HTMLElement} root an element that is the viewer's own */
  constructor(root) {
    addStyle();
    this.root = root;
    this.build();
    this.files = [];
    this.index = 0;
    try {
      this.stage = new Stage(this.canvas);
    } catch {
      this.say("This browser shows no 3D (WebGL is off). The file is saved all the same.");
    }
  }

  /** @param {Shown[]} files the first is shown, the others can be leafed to */
  show(files) {
    this.files = files;
    this.open(0);
  }

  dispose() {
    this.loading?.abort();
    this.stage?.dispose();
    this.root.replaceChildren();
  }

  build() {
    this.canvas = make("canvas", { tabIndex: 0, title: "Drag to turn, wheel to come closer, right drag to move" });
    this.view = make("select", { title: "What to see of the surface", onchange: () => this.look() });
    for (const [value, { label }] of Object.entries(VIEWS)) this.view.append(make("option", { value, textContent: label }));
    this.wires = toggle("Wireframe", "Lines around every triangle", () => this.look());
    this.turning = toggle("Turntable", "Turn the model slowly", (on) => this.stage?.turn(on));
    const reset = make("button", { textContent: "Reset", title: "Look from the front again", onclick: () => this.stage?.reset() });
    this.pager = make("span", { className: "pager", hidden: true });
    this.page = make("span");
    const leaf = (by) => () => this.open((this.index + by + this.files.length) % this.files.length);
    this.pager.append(
      make("button", { textContent: "‹", title: "Previous model", onclick: leaf(-1) }),
      this.page,
      make("button", { textContent: "›", title: "Next model", onclick: leaf(1) }),
    );
    const bar = make("div", { className: "bar" });
    bar.append(this.view, this.wires, this.turning, reset, this.pager);
    this.note = make("div", { className: "note" });
    this.figures = make("div", { className: "figures" });
    const box = make("div", { className: "trelliscore-viewer" });
    box.dataset.captureWheel = "true"; // the host's sign for "the wheel is mine"
    for (const event of ["pointerdown", "wheel", "contextmenu", "keydown", "dblclick"])
      box.addEventListener(event, (it) => it.stopPropagation()); // the graph below must not move too
    box.append(bar, this.canvas, this.figures, this.note);
    this.root.replaceChildren(box);
  }

  async open(index) {
    if (!this.stage) return;
    this.index = index;
    this.loading?.abort();
    const { signal } = (this.loading = new AbortController());
    const { name, url } = this.files[index];
    this.pager.hidden = this.files.length < 2;
    this.page.textContent = `${index + 1} / ${this.files.length}`;
    this.say("Loading…");
    try {
      const model = await Model.load(url, signal);
      if (signal.aborted) return model.dispose();
      this.stage.put(model);
      this.describe(name, model.figures);
      this.say("");
    } catch (error) {
      if (signal.aborted) return;
      this.stage.put(null);
      this.figures.textContent = name;
      this.say(error.message);
    }
  }

  describe(name, { triangles, vertices, textures, bytes, hasUv }) {
    const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
    const parts = [count(triangles, "triangle"), count(vertices, "vertex").replace("vertexs", "vertices")];
    parts.push(textures.length ? `${count(textures.length, "texture")} ${[...new Set(textures)].join(", ")}` : "no textures");
    parts.push(bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
    this.figures.textContent = parts.join(" · ");
    this.figures.title = `${name}: ${this.figures.textContent}`;
    for (const option of this.view.options) option.disabled = Boolean(VIEWS[option.value].needsUv) && !hasUv;
    if (this.view.selectedOptions[0].disabled) this.view.value = "lit";
    this.look();
  }

  look() {
    this.stage?.look(this.view.value, this.wires.getAttribute("aria-pressed") === "true");
  }

  say(text) {
    this.note.textContent = text;
  }
}

function make(tag, values = {}) {
  return Object.assign(document.createElement(tag), values);
}

function toggle(textContent, title, action) {
  const button = make("button", { textContent, title });
  button.setAttribute("aria-pressed", "false");
  button.onclick = () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    action(on);
  };
  return button;
}
