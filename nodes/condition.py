"""What the networks see of the picture."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host, pictures
from .sockets import Choice, Condition, Family, advanced, schema


def picture_inputs() -> list[Any]:
    """Inputs of every node that takes pictures."""
    return [
        io.Image.Input("image", tooltip="One picture, or a batch of them: one object is made of each."),
        io.Mask.Input("mask", optional=True, tooltip="Where the subject is; one a picture. All black: no mask."),
    ]


def cutting_inputs() -> list[Any]:
    """Widgets that say how the subject is found."""
    return [
        Choice(
            "background",
            options=list(pictures.BACKGROUNDS),
            default=pictures.BACKGROUNDS[0],
            optional=True,
            tooltip="How the subject is found without a mask: by taking a plain background colour away; by a network "
            "(pip install rembg); or not at all, for pictures that are cut out on black and square.",
        ),
        advanced(
            Choice(
                "mask_shows",
                options=list(pictures.MASK_SIDES),
                default="auto",
                optional=True,
                tooltip="What is white in the mask. Load Image gives the background. auto: the side at the picture's "
                "border is the background.",
            )
        ),
    ]


def check_background(background: str | None) -> bool | str:
    """For the host's check before a run: True, or why subjects cannot be found so. A linked choice is None."""
    return pictures.check_background(background) if background is not None else True


def batch_input() -> Any:
    """What a batch of pictures means, for nodes that can take several views."""
    return Choice(
        "batch_is",
        options=list(pictures.BATCHES),
        default=pictures.BATCHES[0],
        optional=True,
        tooltip="What a batch of pictures shows: several objects, and one model is made of each; or one object from several "
        "sides, and all of them make one model.",
    )


def cut(image: Any, mask: Any, background: str, mask_shows: str) -> dict[str, Any]:
    """Host pictures as arguments of the core: `pictures`, and how their subject is found."""
    matte = pictures.matte_for(background)
    seen = pictures.to_pictures(image, mask, mask_shows)
    cropped = matte is None and all(picture.mode == "RGB" for picture in seen)
    return {"pictures": seen, "matte": matte, "cropped": cropped}


class ImageConditioner(io.ComfyNode):
    """Pictures to tokens."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ImageConditioner",
            "TRELLIS.2 Image Conditioner",
            "Crops each picture to its subject on black and turns it into the tokens that guide all sampling. "
            "The preview is exactly what the networks see.",
            search_aliases=["dino", "image encode", "remove background"],
            inputs=[Family.Input("family", tooltip="The networks, from Load TRELLIS.2."), *picture_inputs(), *cutting_inputs()],
            outputs=[
                Condition.Output("condition", display_name="condition", tooltip="For the samplers."),
                io.Image.Output("seen", display_name="seen", tooltip="The cropped pictures, as the networks see them."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, background: Any = None) -> bool | str:
        return check_background(background)

    @classmethod
    def execute(
        cls, family: Any, image: Any, mask: Any = None, background: str = pictures.BACKGROUNDS[0], mask_shows: str = "auto"
    ) -> io.NodeOutput:
        from ..trellis_core import stages

        run = host.Run(cls, "condition")
        condition = stages.condition(family, **cut(image, mask, background, mask_shows), ctx=run.ctx)
        run.show(pictures.to_pil(condition.pictures[0]))
        return io.NodeOutput(condition, pictures.to_image(condition.pictures))


NODES = [ImageConditioner]
