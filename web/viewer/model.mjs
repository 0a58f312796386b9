/** GLB files to three.js objects, and their figures. */
import { Box3, Texture, Vector3 } from "../vendor/three/three.module.mjs";
import { GLTFLoader } from "../vendor/three/GLTFLoader.mjs";

/** Decodes pictures without blob: addresses, which the content policy of some hosts forbids. */
class EmbeddedImages {
  constructor(parser) {
    const load = parser.loadImageSource.bind(parser);
    parser.loadImageSource = (index, loader) => {
      const image = parser.json.images[index];
      if (image.bufferView === undefined) return load(index, loader);
      parser.sourceCache[index] ??= this.decode(parser, image);
      return parser.sourceCache[index].then((texture) => texture.clone());
    };
    this.name = "TRELLISCORE_embedded_images";
  }

  async decode(parser, image) {
    const bytes = await parser.getDependency("bufferView", image.bufferView);
    const raw = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
    const texture = new Texture(await createImageBitmap(new Blob([bytes], { type: image.mimeType }), raw));
    texture.needsUpdate = true;
    return texture;
  }
}

/** @typedef {{triangles: number, vertices: number, textures: string[], bytes: number, hasUv: boolean}} Figures */

/** A loaded model, standing on the ground in the middle, its largest side 1 long. */
export class Model {
  /**
   * @param {string} url
   * @param {AbortSignal} signal
   * @returns {Promise<Model>}
   * @throws {Error} in words, if the file is gone or cannot be read
   */
  static async load(url, signal) {
    const answer = await fetch(url, { signal, cache: "no-cache" });
    if (!answer.ok) throw new Error("The file is gone. Run the workflow again.");
    const data = await answer.arrayBuffer();
    const loader = new GLTFLoader().register((parser) => new EmbeddedImages(parser));
    const { scene } = await loader.parseAsync(data, "").catch((error) => {
      throw new Error(`The file cannot be shown: ${error.message}`);
    });
    return new Model(scene, data.byteLength);
  }

  constructor(scene, bytes) {
    this.scene = scene;
    this.meshes = [];
    scene.traverse((object) => object.isMesh && this.meshes.push(object));
    this.materials = this.meshes.map((mesh) => mesh.material);
    this.figures = this.measure(bytes);
    this.stand();
  }

  stand() {
    const box = new Box3().setFromObject(this.scene);
    const size = box.getSize(new Vector3());
    const middle = box.getCenter(new Vector3());
    const scale = 1 / Math.max(size.x, size.y, size.z, 1e-9);
    this.scene.scale.multiplyScalar(scale);
    this.scene.position.sub(new Vector3(middle.x, box.min.y, middle.z)).multiplyScalar(scale);
    this.size = size.multiplyScalar(scale);
    this.scene.updateMatrixWorld(true);
  }

  /** @returns {Figures} */
  measure(bytes) {
    const count = (mesh) => (mesh.geometry.index ?? mesh.geometry.attributes.position).count / 3;
    const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
    return {
      triangles: sum(this.meshes.map(count)),
      vertices: sum(this.meshes.map((mesh) => mesh.geometry.attributes.position.count)),
      textures: [...this.textures()].map(({ image }) => `${image.width}×${image.height}`),
      bytes,
      hasUv: this.meshes.some((mesh) => mesh.geometry.attributes.uv),
    };
  }

  /** Every texture once, also where two uses share a picture. */
  textures() {
    const sources = new Map();
    for (const material of this.materials)
      for (const value of Object.values(material)) if (value?.isTexture) sources.set(value.source, value);
    return sources.values();
  }

  dispose() {
    const images = [...this.textures()];
    for (const material of this.materials) {
      for (const value of Object.values(material)) if (value?.isTexture) value.dispose();
      material.dispose();
    }
    images.forEach(({ image }) => image?.close?.());
    this.meshes.forEach((mesh) => mesh.geometry.dispose());
  }
}
