// Settings > TRELLIS.2 > fal: the keys. They can be set here and never be read again; nothing of them becomes a setting.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const ROUTE = "/trellis2/fal_keys";

async function send(server, key) {
  const reply = await api.fetchApi(ROUTE, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ server, key }),
  });
  const body = await reply.json();
  if (!reply.ok) throw new Error(body.error ?? `status ${reply.status}`);
  return body.keyed;
}

function panel() {
  const form = document.createElement("form");
  form.style.cssText = "display: grid; gap: 6px; min-width: 20em";
  const field = (placeholder, type) => {
    const input = document.createElement("input");
    Object.assign(input, { placeholder, type, autocomplete: "off" });
    input.setAttribute("aria-label", placeholder);
    form.append(input);
    return input;
  };
  const server = field("server, empty for fal.ai", "text");
  const key = field("key, empty to forget it", "password");
  const save = document.createElement("button");
  save.textContent = "Save key";
  const said = document.createElement("small");
  said.setAttribute("role", "status");
  form.append(save, said);

  const show = (keyed) => (said.textContent = keyed.length ? `Keys are set for: ${keyed.join(", ")}` : "No key is set.");
  api.fetchApi(ROUTE).then((reply) => reply.json()).then((body) => show(body.keyed ?? [])).catch(() => {});
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      show(await send(server.value.trim(), key.value.trim()));
    } catch (error) {
      said.textContent = error.message;
    } finally {
      key.value = "";
    }
  });
  return form;
}

app.registerExtension({
  name: "TrellisCore.Fal",
  settings: [
    {
      id: "TrellisCore.Fal.Keys",
      category: ["TRELLIS.2", "fal", "Keys"],
      name: "Keys for fal.ai and for servers of your own",
      tooltip: "Kept on ComfyUI's machine in a file that only its user may read. The variable FAL_KEY goes before it.",
      type: panel,
      defaultValue: null,
    },
  ],
});
