/**
 * Shows the models of View 3D and Save GLB on their nodes. The widget only displays: it is neither part of the prompt
 * nor of the saved workflow. three.js is loaded when the first model is there to be shown.
 */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NODES = ["TrellisCoreView3D", "TrellisCoreSaveGLB"];
const FILES = "trellisCoreFiles"; // property of the node: what it showed last, so that a reload finds it again
const MIN_HEIGHT = 300;
const START_SIZE = [380, 480];

/** @typedef {{filename: string, subfolder: string, type: string}} HostFile */

/** @param {HostFile} file */
function address(file) {
  return api.apiURL(`/view?${new URLSearchParams({ filename: file.filename, subfolder: file.subfolder, type: file.type })}`);
}

/** Gives a node its viewer. */
function addViewer(node) {
  const root = document.createElement("div");
  root.style.cssText = `width:100%;height:100%;min-height:${MIN_HEIGHT}px`;
  let panel; // a promise of the viewer, once there is something to show
  let removed = false;

  const show = (files) => {
    if (!files?.length || removed) return;
    panel ??= import("./viewer/panel.mjs").then(({ Panel }) => new Panel(root));
    panel.then((it) => !removed && it.show(files.map((file) => ({ name: file.filename, url: address(file) }))));
  };

  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => MIN_HEIGHT };
  const widget = node.addDOMWidget("viewer", "TRELLISCORE_VIEWER", root, options);
  widget.serialize = false; // the option keeps it out of the prompt, this out of the workflow

  after(node, "onExecuted", (output) => {
    const files = output?.["3d"];
    if (!files?.length) return;
    delete output.images; // the picture beside the file is for the queue and the assets; the node shows the model itself
    node.properties[FILES] = files;
    show(files);
  });
  after(node, "onConfigure", () => show(node.properties[FILES]));
  after(node, "onRemoved", () => {
    removed = true;
    panel?.then((it) => it.dispose());
  });
  root.append(hint("Run the workflow: the model appears here."));
  node.setSize([Math.max(node.size[0], START_SIZE[0]), Math.max(node.size[1], START_SIZE[1])]);
}

/** Calls `action` after what the node already does on that occasion. */
function after(node, occasion, action) {
  const before = node[occasion];
  node[occasion] = function (...values) {
    const result = before?.apply(this, values);
    action(...values);
    return result;
  };
}

function hint(text) {
  const element = document.createElement("div");
  element.textContent = text;
  element.style.cssText =
    "display:grid;place-items:center;height:100%;min-height:inherit;border-radius:8px;background:#26282c;color:#9aa0a8;font:13px sans-serif";
  return element;
}

app.registerExtension({
  name: "TrellisCore.Viewer",
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass)) addViewer(node);
  },
});
