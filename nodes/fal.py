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
from .save import glb_bytes
from .sockets import AnyFile3D, Choice, File3D, advanced, glb_file, model_outputs, schema, settings_input

ENDPOINTS = ("auto", "trellis-2", "trellis-2-lora", "trellis-2/multi", "trellis-2/retexture")
"""Choices of the node; a test holds them to the endpoints that there are."""


class FalGenerate(io.ComfyNode):
    """Pictures to textured models, elsewhere."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "FalGenerate",
            "TRELLIS.2 Image to 3D (fal)",
            "Has the model made at fal.ai, or on a server of your own, with the same settings as Image to 3D. "
            "At fal.ai a model costs about $0.25 at 512, $0.30 at 1024 and $0.35 at 1536. The same inputs are paid for once: a "
            "job that is known is fetched and not repeated. The key is FAL_KEY, or is entered in the settings under TRELLIS.2; "
            "it never is part of a workflow.",
            search_aliases=["trellis", "fal.ai", "remote", "cloud"],
            inputs=[
                *condition.picture_inputs(),
                seed_input(),
                endpoint_input(),
                preset_input(),
                fields.resolution(BEFORE),
                condition.batch_input(),
                *condition.cutting_inputs(),
                lora_input(),
                mesh_input(),
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
        tooltip="auto takes trellis-2/retexture where a mesh is connected, trellis-2-lora where LoRAs are, trellis-2/multi for "
        "views of one object, else trellis-2.",
    )


def mesh_input() -> Any:
    return io.MultiType.Input(
        "mesh",
        types=[AnyFile3D, File3D, io.Mesh],
        optional=True,
        tooltip="A model that is painted anew after the picture, by trellis-2/retexture: GLB, OBJ, PLY or STL.",
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
        advanced(
            io.Boolean.Input(
                "submit_anew",
                default=False,
                optional=True,
                tooltip="On: a new job is submitted, and billed, also where one with the same inputs is known. Off: the known "
                "job's result is fetched.",
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
    batch_is: str = pictures.BATCHES[0],
    mesh: Any = None,
    base_url: str = "",
    request_id: str = "",
    submit_anew: bool = False,
) -> list[Any]:
    """The models of these pictures, made elsewhere; and last, in words, where and by which requests."""
    from ..trellis_core.fal import remote
    from ..trellis_core.fal.client import FalClient
    from ..trellis_core.fal.order import endpoint_for, lora_files, order, price
    from ..trellis_core.noise import item_seed

    stack = [lora for lora in loras or () if lora.strength]
    views = batch_is == pictures.BATCHES[1]
    app = endpoint_for(endpoint, loras=bool(stack), views=len(image) if views else 1, mesh=mesh is not None)
    book, base_url, request_id = host_fal.notebook(), base_url.strip(), request_id.strip()
    client = FalClient(book.key(base_url), base_url)
    files, notes = lora_files(stack) if stack else ({}, [])
    model = None if mesh is None else _mesh_file(mesh)
    seen = _cut_out(image, mask, background, mask_shows)
    groups = [seen] if views else [[picture] for picture in seen]
    if request_id and len(groups) > 1:
        raise InputError("One request id is for one picture: take the batch away, or empty request_id.")
    wanted = [
        order(app, settings.model_copy(update={"seed": item_seed(seed, index)}), group, mesh=model, loras=files)
        for index, group in enumerate(groups)
    ]
    run, costs = host.Run(node), price(app, settings, base_url)
    host.tell(node, costs)
    made = []
    for one, part in zip(wanted, run.ctx.split(len(wanted)), strict=True):
        follow = _Follower(part, node, costs)
        work = remote.generate(
            client, book, one, request_id=request_id, submit_anew=submit_anew, on_state=follow.state, on_request=follow.request
        )
        made.append(await host_fal.until_stopped(work))
    run.ctx.report(1.0)
    lines = [f"request {model.request_id} ({app}, {client.name}, seed {model.seed})" for model in made]
    notes += [note for model in made for note in model.notes]
    return [*made, "\n".join(filter(None, [*lines, *notes, costs]))]


class _Follower:
    """Shows a remote job on the node: bar from the place in the line and the log, text below it."""

    def __init__(self, ctx: Any, node: type, price: str) -> None:
        self._ctx, self._node, self._price, self._id = ctx, node, price, ""

    def request(self, request_id: str) -> None:
        self._id = request_id
        host.tell(self._node, "\n".join(filter(None, [f"request {request_id}", self._price])))

    def state(self, state: Any) -> None:
        if state.fraction is not None:
            self._ctx.report(0.05 + 0.9 * state.fraction)
        where = f"{state.position} before it in the line" if state.position is not None else state.line or "running"
        host.tell(self._node, "\n".join(filter(None, [f"request {self._id}", where, self._price])))


def _cut_out(image: Any, mask: Any, background: str, mask_shows: str) -> list[Any]:
    """Pictures whose alpha shows the subject. What is cut out on black already is sent as it is."""
    matte = pictures.matte_for(background)
    seen = pictures.to_pictures(image, mask, mask_shows)
    return [matte(picture) if matte and picture.mode == "RGB" else picture for picture in seen]


def _mesh_file(mesh: Any) -> Any:
    """A 3D file of the host, or a bare mesh, as a file that the API takes."""
    from ..trellis_core.fal.order import mesh_file

    return mesh_file(*((glb_bytes(mesh), "glb") if hasattr(mesh, "vertices") else (mesh.get_bytes(), mesh.format)))


def _color(picture: Any) -> Any:
    import numpy as np
    import torch

    if picture is None:
        return torch.full((1, 64, 64, 3), 0.5)
    return torch.from_numpy(np.array(picture))[None].float() / 255


NODES = [FalGenerate]
