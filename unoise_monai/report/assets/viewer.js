"use strict";
/* Drives NiiVue, as its Jupyter widget brings it, from a page on disk: the models that Jupyter would keep are kept here. */

const unoise = { texts: new Map(), deliver(key, text) { this.texts.set(key, text); } };

/** A script of the report hands its text over by `unoise.deliver`. */
function load(file, key) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.onload = () => { resolve(unoise.texts.get(key)); unoise.texts.delete(key); script.remove(); };
    script.onerror = () => reject(new Error(`${file} is missing`));
    script.src = file;
    document.head.append(script);
  });
}

function bytes(base64) {
  const text = atob(base64);
  const data = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) data[i] = text.charCodeAt(i);
  return data;
}

/** What the widget takes for a Jupyter model. */
class Model {
  _comm_live = false; // nothing is sent back
  constructor(values, manager) { this.values = values; this.widget_manager = manager; this.heard = new Map(); }
  get(name) { return this.values[name]; }
  set(name, value) { this.values[name] = value; }
  on(event, call) { this.heard.set(event, [...(this.heard.get(event) ?? []), call]); }
  off(event, call) { this.heard.set(event, (this.heard.get(event) ?? []).filter((each) => call && each !== call)); }
  emit(event, ...values) { for (const call of this.heard.get(event) ?? []) call(...values); }
  change(name, value) {
    if (this.values[name] === value) return;
    this.values[name] = value;
    this.emit(`change:${name}`);
  }
  order(type, ...data) { this.emit("msg:custom", { type, data }, []); }
  send(message) { this.sent?.(message); }
  send_sync_message() {}
  save_changes() {}
}

/* The widget's own steps are no news of the page's; its warnings and errors are. */
const QUIET = "const console = { ...globalThis.console, log() {}, debug() {} };\n";
const SLICES = { axial: 0, coronal: 1, sagittal: 2, all: 3, volume: 4 };
/* Of the classes, in turn: apart from each other, from the grey of a scan and from the map's black, violet and yellow. */
const CLASSES = [[0, 229, 255], [255, 120, 225], [90, 255, 120], [255, 255, 255], [110, 150, 255]];
/* What lies at the left, right, top and bottom of a view. */
const LETTERS = { axial: "RLAP", coronal: "RLSI", sagittal: "APSI" };
/* Azimuth and elevation, degrees, of the side that is cut away. */
const CUTS = { front: [180, 0], back: [0, 0], right: [90, 0], left: [270, 0], head: [0, 90], feet: [0, -90] };
/* Keys to steps: across the view (0), up (1) or through it (2), towards the patient's right, front or head. */
const KEYS = { ArrowLeft: [0, 1], ArrowRight: [0, -1], ArrowUp: [1, 1], ArrowDown: [1, -1], PageUp: [2, 1], PageDown: [2, -1] };
/* The patient's axes across, up and through a view. */
const AXES = { axial: [0, 1, 2], coronal: [0, 2, 1], sagittal: [1, 2, 0] };
/* What the sliders of a layer are called by NiiVue's widget. */
const TRAITS = { opacity: "opacity", threshold: "cal_min", black: "cal_min", white: "cal_max" };
/* Of the canvas at most, CSS pixels. */
const HEIGHT = 680;
const OPTIONS = {
  isRadiologicalConvention: true, // as the pictures: the patient's right on the left, the front of sagittal slices too
  sagittalNoseLeft: true,
  multiplanarShowRender: 1,
  multiplanarLayout: 2,
  sliceType: SLICES.all,
  backColor: [0, 0, 0, 1],
  crosshairColor: [0.4, 0.85, 1, 0.7],
  crosshairWidth: 0.3,
  crosshairWidthUnit: "percent",
  isOrientCube: true,
  clipPlaneColor: [0, 0, 0, 0],
  fontColor: [1, 1, 1, 0.9],
  tileMargin: 2,
  dragAndDropEnabled: false,
  scrollRequiresFocus: true,
  isResizeCanvas: true,
  logLevel: "error",
};

/** The colours of class indices, none for 0, as NiiVue takes them. */
function colours(high) {
  const labels = Array.from({ length: high + 1 }, (_, label) => label);
  const lut = labels.flatMap((label) => (label ? [...CLASSES[(label - 1) % CLASSES.length], 255] : [0, 0, 0, 0]));
  return { lut, min: 0, max: high, labels: labels.map(String) };
}

function volume(layer, data, manager) {
  const seg = layer.kind === "seg", map = layer.kind === "map";
  return new Model({
    id: layer.key, name: `${layer.key}.nii.gz`, path: {}, url: null, data, paired_img_path: {}, paired_img_url: "", paired_img_data: null,
    colormap: map ? "inferno" : "gray", colormap_negative: "", colormap_type: map ? 1 : 0, colormap_invert: false,
    colormap_label: seg ? colours(layer.high) : null, colorbar_visible: false,
    cal_min: seg ? 0 : layer.low, cal_max: layer.high, cal_min_neg: null, cal_max_neg: null,
    opacity: 1, frame_4d: 0, modulation_image: null, modulate_alpha: 0,
  }, manager);
}

class Viewer {
  constructor(root) {
    this.root = root;
    this.layers = JSON.parse(root.dataset.layers);
    this.classes = JSON.parse(root.dataset.classes);
    this.stage = root.querySelector(".stage");
    this.form = root.querySelector("form");
    this.place = root.querySelector(".place");
    this.models = new Map();
    this.manager = { get_model: async (id) => this.models.get(id) };
    this.turn = [145, 15]; // azimuth and elevation, degrees: from the patient's front left, a little from above
    root.querySelector(".start").addEventListener("click", (event) => this.open(event.currentTarget));
  }

  async open(button) {
    button.disabled = true;
    button.textContent = "Loading …";
    try {
      if (!document.createElement("canvas").getContext("webgl2")) throw new Error("this browser offers no WebGL 2");
      const source = await load("../assets/niivue.js", "niivue");
      for (const layer of this.layers) if (this.shown().includes(`IPY_MODEL_${layer.key}`)) await this.fetch(layer);
      const url = URL.createObjectURL(new Blob([QUIET, source], { type: "text/javascript" }));
      const widget = (await import(url)).default;
      URL.revokeObjectURL(url);
      button.remove();
      await this.start(widget);
      this.root.dataset.state = "ready";
    } catch (error) {
      this.root.dataset.state = "failed";
      this.stage.textContent = `The viewer could not start: ${error.message}.`;
    }
  }

  async start(widget) {
    const height = Math.round(Math.min(HEIGHT, 0.8 * innerHeight, 1.2 * this.stage.clientWidth));
    this.model = new Model({
      opts: { ...this.options(), sliceType: SLICES.axial }, // the volume is slow to draw without a graphics card: once, when all is there
      volumes: this.shown(), meshes: [], height, scene: null, graph: null, background_masks_overlays: 0,
      draw_lut: null, draw_opacity: 1, draw_fill_overwrites: true, overlay_outline_width: 0, overlay_alpha_shader: 1,
      this_model_id: null,
    }, this.manager);
    this.model.sent = ({ event, data }) => { if (event === "location_change") this.place.textContent = this.where(data); };
    await widget.initialize({ model: this.model });
    await widget.render({ model: this.model, el: this.stage });
    const canvas = this.stage.querySelector("canvas");
    canvas.setAttribute("aria-label", "Viewer. Arrow, page up and page down keys move the cross hairs; in the volume they turn it.");
    this.stage.append(...["left", "right", "top", "bottom"].map((side) => Object.assign(document.createElement("b"), { className: side })));
    canvas.addEventListener("keydown", (event) => this.key(event), true);
    this.form.hidden = this.place.hidden = false;
    this.form.addEventListener("input", (event) => this.input(event.target));
    this.form.addEventListener("reset", () => setTimeout(() => this.all()));
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.all();
    const [renderAzimuth, renderElevation] = this.turn;
    this.model.change("scene", { crosshairPos: JSON.parse(this.root.dataset.start), renderAzimuth, renderElevation });
    this.model.order("move_crosshair_in_vox", 0, 0, 0); // draws, and says where
  }

  /** The layers of the moment, as the widget names models: the scan beneath, one map, the segmentation on top. */
  shown() {
    const map = this.form.elements.map?.value;
    return this.layers.filter(({ kind, key }) => kind !== "map" || key === map).map(({ key }) => `IPY_MODEL_${key}`);
  }

  async fetch(layer) {
    if (!layer.model) {
      layer.model = volume(layer, bytes(await load(layer.file, layer.key)), this.manager);
      this.models.set(layer.key, layer.model);
      for (const [what, trait] of Object.entries(TRAITS)) {
        const control = this.form.elements[`${layer.kind}-${what}`];
        if (control) layer.model.set(trait, Number(control.value));
      }
    }
  }

  all() {
    for (const control of this.form.elements) if (control.name && (control.type !== "radio" || control.checked)) this.input(control);
  }

  async input(control) {
    const { name, value, type } = control;
    if (type === "range") {
      const text = "intensity" in control.dataset ? `${Number(Number(value).toPrecision(3))}` : `${Math.round(100 * value)}%`;
      control.parentElement.querySelector("output").textContent = text;
    }
    const [part, what] = name.split("-");
    const layers = this.layers.filter(({ kind }) => kind === part);
    if (name === "view" || name === "seg-opacity") this.view();
    if (name === "map") {
      try {
        await this.choose(layers.find(({ key }) => key === value));
      } catch (error) {
        this.place.textContent = `The map could not be shown: ${error.message}.`;
      }
    }
    if (part === "cut") this.cut();
    const trait = TRAITS[what];
    if (trait) for (const { model } of layers) model?.change(trait, Number(value));
  }

  async choose(layer) {
    await this.fetch(layer);
    if (this.form.elements.map.value !== layer.key) return; // another was chosen meanwhile
    this.form.querySelector(".map-title").textContent = layer.title;
    // The widget compares: what is there already stays.
    if (this.shown().join() !== this.model.get("volumes").join()) this.model.change("volumes", this.shown());
  }

  /** NiiVue's options, as the form has them. */
  options() {
    const { elements } = this.form;
    return {
      ...OPTIONS,
      sliceType: SLICES[elements.view.value],
      isOrientationTextVisible: !LETTERS[elements.view.value],
      atlasOutline: Math.min(1, 2 * Number(elements["seg-opacity"]?.value ?? 0)),
    };
  }

  view() {
    // NiiVue puts its letters of a single slice at wrong places (0.6x): the page has its own.
    const letters = LETTERS[this.form.elements.view.value] ?? "";
    this.stage.querySelectorAll("b").forEach((letter, i) => { letter.textContent = letters[i] ?? ""; });
    this.model.change("opts", this.options());
    this.model.order("draw_scene");
  }

  /** Cuts the scan away from one side, as deep as the slider says: NiiVue's depth is 0.5 at the side and 2 for no cut. */
  cut() {
    const { elements } = this.form;
    const depth = Number(elements["cut-depth"].value), [azimuth, elevation] = CUTS[elements["cut-side"].value];
    const at = depth > 0 ? 0.5 - depth : 2;
    const [up, turn] = [(-elevation * Math.PI) / 180, ((azimuth + 90) * Math.PI) / 180];
    const normal = [Math.cos(up) * Math.cos(turn), Math.cos(up) * Math.sin(turn), Math.sin(up)];
    this.model.change("scene", { clipPlaneDepthAziElevs: [[at, azimuth, elevation]], clipPlanes: [[...normal, at]] });
    this.model.order("draw_scene");
  }

  key(event) {
    if (!(event.key in KEYS) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const [along, sign] = KEYS[event.key], view = this.form.elements.view.value;
    if (view !== "volume") {
      const step = [0, 0, 0];
      step[(AXES[view] ?? AXES.axial)[along]] = sign;
      this.model.order("move_crosshair_in_vox", ...step);
    } else {
      this.turn[along ? 1 : 0] += 10 * sign;
      this.model.change("scene", { renderAzimuth: this.turn[0], renderElevation: this.turn[1] });
      this.model.order("draw_scene");
    }
  }

  where({ mm, values }) {
    const side = (value, high, low) => `${Math.abs(value).toFixed(0)} mm ${value < 0 ? low : high}`;
    const found = values.map(({ id, value }) => [this.layers.find(({ key }) => key === id), value]).filter(([layer]) => layer);
    const texts = found.filter(([{ title }]) => title).map(([{ kind, title }, value]) => {
      if (kind !== "seg") return `${title} ${Number(value.toPrecision(3))}`;
      return `${title} ${value ? (this.classes[value - 1] ?? value) : "none"}`;
    });
    return [`${side(mm[0], "R", "L")}, ${side(mm[1], "A", "P")}, ${side(mm[2], "S", "I")}`, ...texts].join(" · ");
  }
}

const root = document.getElementById("viewer");
if (root) new Viewer(root);
