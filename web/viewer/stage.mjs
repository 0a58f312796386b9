/** The scene around a model: light, ground, camera; draws when something changed, and only then. */
import {
  DirectionalLight, Mesh, PerspectiveCamera, PlaneGeometry, Scene, ShadowMaterial, Vector3,
} from "../vendor/three/three.module.mjs";
import { OrbitControls } from "../vendor/three/OrbitControls.mjs";
import * as studio from "./studio.mjs";
import { VIEWS, wires } from "./views.mjs";

const FIELD_OF_VIEW = 30;
const FROM = new Vector3(0.45, 0.3, 1).normalize(); // a little from the side and above: shows three faces of a box
const ROOM = 1.12; // distance to spare around the model
const SHARPEST = 2; // pixels per unit of the page, at most

export class Stage {
  /**
   * @param {HTMLCanvasElement} canvas
   * @throws {Error} the browser has no WebGL
   */
  constructor(canvas) {
    this.canvas = canvas;
    this.model = null;
    this.replaced = []; // materials of the chosen view, ours to dispose of
    this.lines = [];
    this.guest = studio.enter(() => this.draw());
    this.scene = new Scene();
    this.scene.environment = studio.light();
    this.scene.add(...this.lamp(), this.floor());
    this.camera = new PerspectiveCamera(FIELD_OF_VIEW, 1, 0.01, 50);
    this.controls = new OrbitControls(this.camera, canvas);
    this.controls.autoRotateSpeed = 3;
    this.controls.addEventListener("change", () => this.draw());
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(canvas);
    this.reset();
  }

  /** @param {import("./model.mjs").Model | null} model belongs to the stage from now on */
  put(model) {
    this.clear();
    this.model = model;
    if (model) this.scene.add(model.scene);
    model?.meshes.forEach((mesh) => (mesh.castShadow = mesh.receiveShadow = true));
    this.reset();
  }

  /** Shows the model in one of `VIEWS`, with or without lines. */
  look(view, withLines) {
    this.undress();
    const flat = view !== "lit" && view !== "clay" && view !== "checker";
    this.ground.visible = !flat;
    this.model?.meshes.forEach((mesh, index) => {
      const own = this.model.materials[index];
      const other = VIEWS[view].material?.(own, mesh);
      mesh.material = other ?? own;
      if (other) this.replaced.push(other);
      if (withLines) this.addLines(mesh);
    });
    this.draw();
  }

  /** Looks from the front at all of the model. */
  reset() {
    const size = this.model?.size ?? new Vector3(1, 1, 1);
    const distance = (ROOM * size.length()) / 2 / Math.sin((FIELD_OF_VIEW * Math.PI) / 360);
    this.controls.target.set(0, size.y / 2, 0);
    this.camera.position.copy(FROM).multiplyScalar(distance).add(this.controls.target);
    this.controls.update();
    this.draw();
  }

  turn(on) {
    this.controls.autoRotate = on;
    let last = performance.now();
    const step = (now) => {
      if (!this.controls.autoRotate || !this.canvas.isConnected) return;
      if (this.canvas.checkVisibility?.() ?? true) this.controls.update((now - last) / 1000); // draws by its change event
      last = now;
      requestAnimationFrame(step);
    };
    if (on) requestAnimationFrame(step);
  }

  draw() {
    if (this.waiting || !this.guest) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      const { clientWidth, clientHeight } = this.canvas;
      if (!clientWidth || !clientHeight) return;
      const zoom = this.canvas.getBoundingClientRect().width / clientWidth; // of the graph
      const sharpness = Math.min(SHARPEST, Math.max(1, zoom * devicePixelRatio));
      const width = Math.round(clientWidth * sharpness);
      const height = Math.round(clientHeight * sharpness);
      if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
      this.camera.aspect = width / height;
      this.camera.fov = this.camera.aspect < 1 ? widened(this.camera.aspect) : FIELD_OF_VIEW;
      this.camera.updateProjectionMatrix();
      studio.draw(this.scene, this.camera, this.canvas);
    });
  }

  dispose() {
    cancelAnimationFrame(this.waiting);
    this.controls.autoRotate = false;
    this.controls.dispose();
    this.resized.disconnect();
    this.clear();
    this.ground.geometry.dispose();
    this.ground.material.dispose();
    this.sun.dispose();
    studio.leave(this.guest);
    this.guest = null;
  }

  clear() {
    if (!this.model) return;
    this.undress();
    this.scene.remove(this.model.scene);
    this.model.dispose();
    this.model = null;
  }

  undress() {
    this.lines.forEach((line) => {
      line.removeFromParent();
      line.material.dispose();
    });
    this.model?.meshes.forEach((mesh, index) => (mesh.material = this.model.materials[index]));
    this.replaced.forEach((material) => material.dispose());
    this.lines = [];
    this.replaced = [];
  }

  addLines(mesh) {
    const lines = new Mesh(mesh.geometry, wires());
    lines.renderOrder = 1;
    mesh.add(lines);
    this.lines.push(lines);
  }

  /** One lamp gives the shadow that lets the model stand; the rest of the light comes from the room. */
  lamp() {
    this.sun = new DirectionalLight(0xfff4e6, 0.9);
    this.sun.position.set(1.2, 2.4, 1.4);
    this.sun.castShadow = true;
    this.sun.shadow.mapSize.set(1024, 1024);
    this.sun.shadow.radius = 6;
    this.sun.shadow.normalBias = 0.02;
    Object.assign(this.sun.shadow.camera, { left: -1.1, right: 1.1, top: 1.1, bottom: -1.1, near: 0.5, far: 6 });
    return [this.sun];
  }

  floor() {
    this.ground = new Mesh(new PlaneGeometry(6, 6).rotateX(-Math.PI / 2), new ShadowMaterial({ opacity: 0.28 }));
    this.ground.position.y = -0.002;
    this.ground.receiveShadow = true;
    return this.ground;
  }
}

/** The vertical field of view in which a narrow picture still shows the same width. */
function widened(aspect) {
  return (Math.atan(Math.tan((FIELD_OF_VIEW * Math.PI) / 360) / aspect) * 360) / Math.PI;
}
