"""Drives the editor in a real browser, as a user's hands and eyes: Debian's Chromium through playwright."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SOFTWARE_WEBGL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
OFFLINE = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.Release.Status": "skip",
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
}
FOREIGN = ("user.css", "userdata", "ERR_NAME_NOT_RESOLVED", "ERR_INTERNET_DISCONNECTED", "favicon")
FOREIGN += ("at onChange", "graph accessed before initialization")
NO_CORE_TEMPLATES = ("/templates/index", "/templates/fuse_options", "core workflow templates", "AxiosError")
"""What the stock editor itself complains of without a network and without any pack; the last two: settings of
its own that are read before there is a graph. And the host's own templates, which scripts/host.sh does not install."""

PATIENCE = 180_000
"""Milliseconds that anything in the page may take on a busy machine."""

PACK = "trellis2-core"
"""The folder of the pack on the host, which is its name in the template browser."""

VIEWER = ".trelliscore-viewer"

READY = "() => window.app?.graph && app.canvas && 'TrellisCoreSaveGLB' in (window.LiteGraph?.registered_node_types ?? {})"
"""Whether the editor stands and knows our nodes."""

SETTLED = """async () => {
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const fading = () => document.getAnimations().some(({ playState, effect }) =>
        playState === "running" && effect?.getTiming().iterations !== Infinity);
    const loading = () => [...document.images].some((image) => !image.complete && image.loading !== "lazy");
    const places = () => [...document.querySelectorAll("[data-node-id], canvas")].map((part) => {
        const { x, y, width, height } = part.getBoundingClientRect();
        return [x, y, width, height].map(Math.round).join();
    }).join(";");
    for (let still = 0, last = ""; still < 4; ) {
        await frame();
        const now = places();
        still = now === last && !fading() && !loading() ? still + 1 : 0;
        last = now;
    }
}"""
"""Comes back when nothing of the page has moved for some frames, and pictures are there."""

COUNT_CONTEXTS = """(() => {
    const own = HTMLCanvasElement.prototype.getContext, made = new Set();
    HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
        const context = own.call(this, kind, ...more);
        if (context && /webgl/.test(kind)) made.add(context);
        return context;
    };
    window.liveWebGL = () => [...made].filter((context) => !context.isContextLost()).length;
})()"""
"""Before anything of the page runs: lets the page tell how many WebGL contexts are alive."""


def chromium() -> str | None:
    """The browser's program: CHROMIUM, or what is on the path."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


class Editor:
    """One page with the editor, in either renderer."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.nodes2 = False
        self.complaints: list[str] = []
        page.add_init_script(COUNT_CONTEXTS)
        page.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: message.type == "error" and self._note(f"{message.text} {message.location}"))
        page.on("pageerror", lambda error: self._note(str(error.stack or error)))

    def _note(self, text: str) -> None:
        if not any(word in text for word in (*FOREIGN, *NO_CORE_TEMPLATES)):
            self.complaints.append(text)

    def open(self, nodes2: bool, **settings: Any) -> None:
        """Load the page anew, with the classic canvas or Nodes 2.0."""
        self.nodes2 = nodes2
        wanted = {**SETTINGS, "Comfy.VueNodes.Enabled": nodes2, **settings}
        reply = self.page.request.post(f"{self.url}/settings", data=json.dumps(wanted))
        assert reply.ok, reply.status
        self.page.goto(self.url)
        self.page.wait_for_function(READY)
        self.settle()

    def settle(self) -> None:
        """Until what the page shows stands still."""
        self.page.evaluate(SETTLED)

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow, as if its file were dropped on the page."""
        self.page.evaluate(
            """async (workflow) => {
                const frame = () => new Promise((done) => requestAnimationFrame(done));
                do {  // while it starts, the editor may yet open an empty workflow in place of ours
                    await app.loadGraphData(workflow);
                    for (let frames = 0; frames < 4; frames++) await frame();
                } while (app.graph.nodes.length !== workflow.nodes.length);
            }""",
            workflow,
        )

    def prompt(self) -> dict[str, Any]:
        """What the editor would post."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def saved(self) -> dict[str, Any]:
        """What the editor would save."""
        return self.page.evaluate("() => app.graph.serialize()")

    def missing(self) -> list[str]:
        """Nodes that the editor does not know."""
        return self.page.evaluate(
            "() => app.graph.nodes.filter((n) => !(n.type in LiteGraph.registered_node_types)).map((n) => n.type)"
        )

    def run(self) -> None:
        """Press Run, and wait for the end.

        Raises:
            AssertionError: it was refused or ended with an error; the host's words.
        """
        how = self.page.evaluate(
            """async () => {
                const ends = ["execution_success", "execution_error", "execution_interrupted"];
                const end = new Promise((done) => ends.forEach((name) => app.api.addEventListener(
                    name, ({ detail }) => done(detail.exception_message ?? name.slice("execution_".length)), { once: true })));
                await app.queuePrompt(0, 1);
                const refused = Object.keys(app.lastNodeErrors ?? {}).length;
                return refused ? JSON.stringify(app.lastNodeErrors) : await end;
            }"""
        )
        assert how == "success", how

    def frame(self, *nodes: int, margin: int = 40, least: float = 0.65) -> None:
        """Fit some nodes, or all, into the window; some at `least` so large that their widgets can be pressed in Nodes 2.0."""
        self.page.evaluate(
            """([ids, margin, least]) => {
                const nodes = app.graph.nodes.filter((node) => !ids.length || ids.includes(node.id));
                const [x0, y0, x1, y1] = [
                    Math.min(...nodes.map((n) => n.pos[0])), Math.min(...nodes.map((n) => n.pos[1] - 34)),
                    Math.max(...nodes.map((n) => n.pos[0] + n.size[0])), Math.max(...nodes.map((n) => n.pos[1] + n.size[1]))];
                const side = 70, top = 90, bottom = 30;
                const w = innerWidth - side - 2 * margin, h = innerHeight - top - bottom - 2 * margin;
                const scale = Math.max(ids.length && least, Math.min(1.4, w / (x1 - x0), h / (y1 - y0)));
                const ds = app.canvas.ds;
                ds.scale = scale;
                ds.offset[0] = (side + margin + (w - scale * (x1 - x0)) / 2) / scale - x0;
                ds.offset[1] = (top + margin + (h - scale * (y1 - y0)) / 2) / scale - y0;
                app.canvas.setDirty(true, true);
            }""",
            [nodes, margin, least],
        )
        self.settle()

    def browse_templates(self) -> None:
        """Open the template browser."""
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.page.get_by_text(PACK, exact=True).wait_for()

    def choose_pack(self) -> None:
        """First click of a newcomer: the pack's name in the template browser."""
        self.page.get_by_text(PACK, exact=True).click()
        self.page.wait_for_function("() => [...document.images].some((image) => image.naturalWidth === 384)")  # a thumbnail
        self.settle()

    def choose_template(self, name: str) -> None:
        """Second click: a card."""
        self.page.get_by_text(name, exact=True).first.click()
        self.page.wait_for_function("() => app.graph.nodes.some((node) => node.comfyClass?.startsWith('TrellisCore'))")
        self.settle()

    def press_run(self) -> None:
        """Third click."""
        self.page.get_by_test_id("queue-button").or_(self.page.get_by_role("button", name="Run", exact=True)).first.click()

    def boxes(self) -> dict[str, list[float]]:
        """Places of the nodes as they are drawn, in the graph's own pixels: left, top, right, bottom."""
        self.frame()
        return self.page.evaluate(
            """() => Object.fromEntries(app.graph.nodes.map((node) => {
                const title = LiteGraph.NODE_TITLE_HEIGHT, [x, y] = node.pos, [w, h] = node.size;
                const drawn = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
                const bottom = drawn ? y - title + drawn.height / app.canvas.ds.scale : y + h;
                return [node.id, [x, y - title, x + w, bottom]];
            }))"""
        )

    def drag(self, right: int, down: int, nth: int = 0) -> None:
        """Drag on a viewer's canvas, from its middle."""
        box = self.page.locator(f"{VIEWER} canvas").nth(nth).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + right, y + down, steps=5)
        self.page.mouse.up()
        self.settle()

    def wait_for_contexts(self, count: int) -> None:
        """Until so many WebGL contexts are alive."""
        self.page.wait_for_function("(count) => liveWebGL() === count", arg=count)

    def wait_for_model(self, count: int = 1) -> None:
        """Until so many viewers have their models; the figures below each say so."""
        self.page.wait_for_function(
            """([viewer, count]) => {
                const figures = [...document.querySelectorAll(viewer + " .figures")];
                return figures.filter((line) => /triangle/.test(line.textContent)).length >= count;
            }""",
            arg=[VIEWER, count],
        )
        self.settle()  # it is drawn in the next frame

    def picture(self, nth: int = 0) -> np.ndarray:
        """What a viewer's canvas shows on the screen: float32 RGB [height, width, 3] in 0..1."""
        shot = self.page.locator(f"{VIEWER} canvas").nth(nth).screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), np.float32) / 255


@contextmanager
def editor(url: str, size: tuple[int, int] = (1600, 1000), scale: float = 1.0) -> Iterator[Editor]:
    """A browser with an empty page.

    Args:
        url: of the running host.
        size: of the window, in the page's pixels.
        scale: device pixels per pixel of the page.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox", *SOFTWARE_WEBGL, *OFFLINE])
        try:
            width, height = size
            yield Editor(browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale), url)
        finally:
            browser.close()


def stored(path: Path) -> dict[str, Any]:
    """A workflow file."""
    return json.loads(path.read_text())
