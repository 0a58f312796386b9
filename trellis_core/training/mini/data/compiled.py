"""The way to the compiled kernels, which need an optional package."""

from __future__ import annotations

from types import ModuleType

from ....errors import InputError


def kernels() -> ModuleType:
    """The compiled kernels; an `InputError` says what to install where numba is missing."""
    try:
        from . import kernels as module
    except ImportError as error:
        raise InputError("Procedural training data needs numba: pip install numba (or the `training` extra).") from error
    return module
