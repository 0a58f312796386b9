/**
 * One WebGL context for all viewers of the page: browsers give out few. Each viewer owns a plain 2D canvas, into which
 * the studio copies what it drew. The context goes away with the last viewer.
 */
import { NeutralToneMapping, PMREMGenerator, PCFSoftShadowMap, WebGLRenderer } from "../vendor/three/three.module.mjs";
import { RoomEnvironment } from "../vendor/three/RoomEnvironment.mjs";

let renderer = null;
let environment = null;
const guests = new Set();

/**
 * @param {() => void} redraw called when the context was lost and came back
 * @returns {object} a key for `leave`
 * @throws {Error} the browser has no WebGL
 */
export function enter(redraw) {
  if (!renderer) open();
  const guest = { redraw };
  guests.add(guest);
  return guest;
}

/** @param {object} guest */
export function leave(guest) {
  guests.delete(guest);
  if (guests.size || !renderer) return;
  environment.dispose();
  renderer.dispose();
  renderer.forceContextLoss();
  renderer = environment = null;
}

/** The light of a room with soft lamps, for `scene.environment`. */
export function light() {
  return environment.texture;
}

/**
 * Draws a scene and copies it.
 * @param {import("../vendor/three/three.module.mjs").Scene} scene
 * @param {import("../vendor/three/three.module.mjs").Camera} camera
 * @param {HTMLCanvasElement} canvas its size in pixels is the size of the picture
 */
export function draw(scene, camera, canvas) {
  const { width, height } = canvas;
  const stage = renderer.domElement;
  // Only ever grown: changing the size makes new buffers, and viewers of all sizes take turns.
  if (stage.width < width || stage.height < height)
    renderer.setSize(Math.max(stage.width, width), Math.max(stage.height, height), false);
  renderer.setViewport(0, 0, width, height);
  renderer.setScissor(0, 0, width, height);
  renderer.render(scene, camera);
  const paper = canvas.getContext("2d");
  paper.clearRect(0, 0, width, height);
  paper.drawImage(stage, 0, stage.height - height, width, height, 0, 0, width, height);
}

function open() {
  renderer = new WebGLRenderer({ antialias: true, alpha: true });
  renderer.setScissorTest(true);
  renderer.toneMapping = NeutralToneMapping; // keeps base colours as they were painted
  renderer.toneMappingExposure = 0.9; // the room is bright: white stays just below white
  renderer.shadowMap.enabled = true;
  renderer.shadowMap.type = PCFSoftShadowMap;
  const generator = new PMREMGenerator(renderer);
  environment = generator.fromScene(new RoomEnvironment(), 0.03);
  generator.dispose();
  renderer.domElement.addEventListener("webglcontextrestored", () => guests.forEach((guest) => guest.redraw()));
}
