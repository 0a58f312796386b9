"""The same job at fal.ai, or on a server that speaks like it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trellis_core.errors import InputError
from ..trellis_core.presets import RECOMMENDED
from ..trellis_core.presets import preset as named
from . import condition, fields, host, pictures
from .generate import BEFORE, preset_input
from .host import fal as host_fal
from .sample import lora_input, seed_input
from .sockets import Choice, advanced, glb_file, model_outputs, schema, settings_input

ENDPOINTS = ("auto", "trellis-2", "trellis-2-lora")


class FalGenerate(io.ComfyNode):
    """Pictures to textured models, elsewhere."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "FalGenerate",
            "TRELLIS.2 Image to 3D (fal)",
            "Has the model made at fal.ai, or on a server of your own, with the same settings as Image to 3D. "
            "At fal.ai a model costs about $0.25 at 512, $0.30 at 1024 and $0.35 at 1536. The key is FAL_KEY, or is entered "
            "in the settings under TRELLIS.2; it never is part of a workflow.",
            search_aliases=["trellis", "fal.ai", "remote", "cloud"],
            inputs=[
                *condition.picture_inputs(),
                seed_input(),
                endpoint_input(),
                preset_input(),
                fields.resolution(BEFORE),
                *condition.cutting_inputs(),
                lora_input(),
                *server_inputs(),
                settings_input(),
            ],
            outputs=model_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, background: Any = None) -> bool | str:
        return condition.check_background(background)

    @classmethod
    async def execute(
        cls, image: Any, seed: int = 0, preset: str = "", settings: Any = None, resolution: Any = RECOMMENDED, **asked: Any
    ) -> io.NodeOutput:
        chosen = fields.settings({"resolution": resolution}, settings, named(preset or RECOMMENDED))
        *made, text = await have_made(cls, image, seed, chosen, **asked)
        return io.NodeOutput(*handed_out(made), text, ui={"text": [text]})


def endpoint_input() -> Any:
    return Choice(
        "endpoint",
        options=list(ENDPOINTS),
        default=ENDPOINTS[0],
        optional=True,
        tooltip="auto takes trellis-2-lora where LoRAs are connected, else trellis-2.",
    )


def server_inputs() -> list[Any]:
    """Where the API is, and which job to fetch."""
    return [
        io.String.Input(
            "base_url",
            default="",
            optional=True,
            tooltip="A server of your own, as `python -m trellis_core serve` prints it. Empty for fal.ai.",
        ),
        advanced(
            io.String.Input(
                "request_id",
                default="",
                optional=True,
                tooltip="Fetch this job instead of making a new one, for example after a restart.",
            )
        ),
    ]


def handed_out(made: list[Any]) -> tuple[Any, ...]:
    """What `model_outputs` names, but for the report."""
    from ..trellis_core.fal import remote

    colors = [_color(remote.base_color(model.glb)) for model in made]
    return [glb_file(model.glb) for model in made], colors, made[0].seed


async def have_made(
    node: type,
    image: Any,
    seed: int,
    settings: Any,
    *,
    endpoint: str = ENDPOINTS[0],
    mask: Any = None,
    background: str = pictures.BACKGROUNDS[0],
    mask_shows: str = pictures.MASK_SIDES[0],
    loras: Any = None,
    base_url: str = "",
    request_id: str = "",
) -> list[Any]:
    """The models of these pictures, made elsewhere; and last, in words, where and by which requests."""
    from ..trellis_core.fal import client as api
    from ..trellis_core.fal import remote
    from ..trellis_core.noise import item_seed

    stack = [lora for lora in loras or () if lora.strength]
    app = api.endpoint_for(endpoint, bool(stack))
    api.arguments_for(app, settings)
    book, base_url = host_fal.notebook(), base_url.strip()
    client = api.FalClient(book.key(base_url), base_url, book.uploads())
    files, notes = remote.lora_files(stack) if stack else ({}, [])
    seen = _cut_out(image, mask, background, mask_shows)
    if request_id.strip() and len(seen) > 1:
        raise InputError("One request id is for one picture: take the batch away, or empty request_id.")
    run, price = host.Run(node), api.price(app, settings, base_url)
    host_fal.say(node, price)
    made = []
    for index, (picture, part) in enumerate(zip(seen, run.ctx.split(len(seen)), strict=True)):
        follow = _Follower(part, node, price)
        wanted = settings.model_copy(update={"seed": item_seed(seed, index)})
        made.append(
            await host_fal.until_stopped(
                remote.generate(
                    client, book, app, picture, wanted, loras=files, request_id=request_id.strip(), base_url=base_url,
                    on_state=follow.state, on_request=follow.request,
                )
            )
        )  # fmt: skip
    run.ctx.report(1.0)
    lines = [f"request {model.request_id} ({app}, {client.name}, seed {model.seed})" for model in made]
    return [*made, "\n".join([*lines, *notes, *filter(None, [price])])]


class _Follower:
    """Shows a remote job on the node: bar from the place in the line and the log, text below it."""

    def __init__(self, ctx: Any, node: type, price: str) -> None:
        self._ctx, self._node, self._price, self._id = ctx, node, price, ""

    def request(self, request_id: str) -> None:
        self._id = request_id
        host_fal.say(self._node, "\n".join(filter(None, [f"request {request_id}", self._price])))

    def state(self, state: Any) -> None:
        self._ctx.report(0.0 if state.position is not None else 0.05 + 0.9 * (state.fraction or 0.0))
        where = f"{state.position} before it in the line" if state.position is not None else state.line or "running"
        host_fal.say(self._node, "\n".join(filter(None, [f"request {self._id}", where, self._price])))


def _cut_out(image: Any, mask: Any, background: str, mask_shows: str) -> list[Any]:
    """Pictures whose alpha shows the subject. What is cut out on black already is sent as it is."""
    matte = pictures.matte_for(background)
    seen = pictures.to_pictures(image, mask, mask_shows)
    return [matte(picture) if matte and picture.mode == "RGB" else picture for picture in seen]


def _color(picture: Any) -> Any:
    import numpy as np
    import torch

    if picture is None:
        return torch.full((1, 64, 64, 3), 0.5)
    return torch.from_numpy(np.array(picture))[None].float() / 255


NODES = [FalGenerate]
