/** Ways to look at a model: as it is, one map at a time, or its surface and UVs alone. */
import {
  CanvasTexture, Color, MeshBasicMaterial, MeshNormalMaterial, MeshStandardMaterial, NearestFilter, RepeatWrapping, SRGBColorSpace,
} from "../vendor/three/three.module.mjs";

/**
 * @typedef {object} View
 * @property {string} label what the user chooses
 * @property {boolean} [needsUv]
 * @property {(material: object, mesh: object) => object} [material] another material in place of the model's own
 */

/** @type {Record<string, View>} */
export const VIEWS = {
  lit: { label: "Final look" },
  color: { label: "Base colour", material: baseColor },
  metallic: {
    label: "Metallic",
    material: (own) => channel(own.metalnessMap, "b", new Color(0, 0, own.metalness ?? 0), own.side),
  },
  roughness: {
    label: "Roughness",
    material: (own) => channel(own.roughnessMap, "g", new Color(0, own.roughness ?? 1, 0), own.side),
  },
  alpha: { label: "Alpha", material: alpha },
  normal: {
    label: "Normals",
    material: (own) => new MeshNormalMaterial({ side: own.side, normalMap: own.normalMap, normalScale: own.normalScale }),
  },
  clay: { label: "Clay", material: (own) => new MeshStandardMaterial({ color: 0xb9b4ae, roughness: 0.75, side: own.side }) },
  checker: {
    label: "UV checker",
    needsUv: true,
    material: (own) => new MeshStandardMaterial({ map: checker(), roughness: 1, side: own.side }),
  },
};

/** Lines over the triangles. */
export function wires() {
  return new MeshBasicMaterial({ color: 0x101418, wireframe: true, transparent: true, opacity: 0.35, depthWrite: false });
}

function baseColor(own, mesh) {
  const colored = Boolean(mesh.geometry.attributes.color);
  return new MeshBasicMaterial({ map: own.map, color: own.color, vertexColors: colored, side: own.side, toneMapped: false });
}

function alpha(own) {
  const material = channel(own.map, "a", new Color(1, 1, 1), own.side);
  material.opacity = own.opacity;
  return material;
}

/** One channel of a picture times a factor, as grey, with the numbers of the file: 0.5 looks like 128 of 255. */
function channel(map, name, color, side) {
  const material = new MeshBasicMaterial({ map, color, side, toneMapped: false });
  material.onBeforeCompile = (shader) => {
    shader.fragmentShader = shader.fragmentShader
      .replace("#include <map_fragment>", `#include <map_fragment>\ndiffuseColor = vec4(vec3(diffuseColor.${name}), 1.0);`)
      .replace("#include <colorspace_fragment>", "");
  };
  material.customProgramCacheKey = () => `trelliscore-${name}`;
  return material;
}

/** Squares with a colour per place: shows stretching, seams and which charts belong together. */
function checker() {
  return (squares ??= drawChecker());
}

let squares; // one for all models

function drawChecker() {
  const canvas = document.createElement("canvas");
  const cells = 32;
  canvas.width = canvas.height = cells * 16;
  const paper = canvas.getContext("2d");
  for (let row = 0; row < cells; row++)
    for (let column = 0; column < cells; column++) {
      const hue = (360 * column) / cells;
      paper.fillStyle = `hsl(${hue} 45% ${(row + column) % 2 ? 30 : 62 + (16 * row) / cells}%)`;
      paper.fillRect(column * 16, row * 16, 16, 16);
    }
  const texture = new CanvasTexture(canvas);
  texture.colorSpace = SRGBColorSpace;
  texture.wrapS = texture.wrapT = RepeatWrapping;
  texture.magFilter = NearestFilter;
  texture.flipY = false;
  return texture;
}
