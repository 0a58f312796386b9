"""What the parameters of all networks share: they come from a config, within limits that no sensible network leaves.

The limits are many times those of the published networks. They are held before anything is built, so that a config from
a stranger can ask neither for a terabyte nor for a million layers.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import Self

from .errors import WeightsError
from .outside import checked

Width = Annotated[int, Field(ge=1, le=1 << 14)]
"""Channels of a layer."""
Widths = Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)]
"""Channels of every level of a U-net."""
Count = Annotated[int, Field(ge=0, le=256)]
"""Layers of one kind, or blocks of a level."""
Side = Annotated[int, Field(ge=1, le=1 << 12)]
"""Pixels or voxels per axis."""
Ratio = Annotated[float, Field(gt=0, le=64)]
Small = Annotated[float, Field(gt=0, lt=1)]
"""What keeps a division from one by zero."""


class NetworkParams:
    """Base of the dataclasses that networks are made from."""

    @classmethod
    def from_args(cls, args: dict[str, Any], where: str = "The config") -> Self:
        """From the `args` of a config as published; names that mean nothing to inference are left aside.

        Args:
            where: what the message of an error begins with.

        Raises:
            WeightsError: something is missing, of another type, beyond its limits, or does not fit the rest.
        """
        return checked(cls, args, where, raising=WeightsError)


def needs(condition: bool, what: str) -> None:
    """Raise `ValueError` with the rule that a config breaks; for `__post_init__`."""
    if not condition:
        raise ValueError(what)
