"""What can be known before a run, checked before anything is read or computed: the one place for all who start runs."""

from __future__ import annotations

import sys
from dataclasses import replace

from .context import RunContext
from .errors import InputError
from .family import Family
from .flow.attention import use_attention
from .memory.mesh_budget import check_room
from .memory.plan import plan_run, with_budget
from .settings import GenerationSettings
from .sparse.libraries import use_convolution

LEAST_MB = 0.02
"""Megabytes of a model with textures as small as `asset.size_limit` makes them."""


def check_run(family: Family, settings: GenerationSettings, ctx: RunContext) -> tuple[GenerationSettings, RunContext]:
    """See that a whole run can be done as far as that can be told without doing it.

    Returns:
        Settings and context to run with: those given, but with fewer tokens or frugal where the memory asks for it.

    Raises:
        InputError: the family cannot make the resolution; an optional package is asked for and missing; a package that
            finishing needs is missing.
        OutOfBudgetError: networks or textures will not fit the memory.
    """
    family.route(settings.resolution, settings.cascade)
    with use_attention(ctx.attention), use_convolution(ctx.convolution):
        pass
    check_packages(settings, ctx)
    budgeted = with_budget(ctx, family)
    if budgeted.memory_budget is not None:
        plan = plan_run(family, settings, budgeted)
        settings, ctx = plan.settings, replace(ctx, frugal=plan.ctx.frugal)  # what is free on a GPU limits no mesh work
    for step in ("unwrap", "bake", *(["detail"] if settings.normal_map or settings.occlusion_map else [])):
        check_room(step, 0, int(settings.texture_size) ** 2, ctx)  # what is certain already, whatever the mesh
    return settings, ctx


def check_packages(settings: GenerationSettings, ctx: RunContext) -> None:
    """What the steps from mesh to file will want; the errors are those of `check_run`."""
    try:
        from .asset import asset  # noqa: F401 - brings along every package that these steps need
        from .gltf.images import check_format
        from .mesh.decimate import library
        from .texturing import gpu_raster
        from .texturing.xatlas_unwrap import check_xatlas

        library()
    except ImportError as error:
        package = str(error.name).replace("_", "-")
        raise InputError(
            f"Finishing a model needs the Python package {package}, which is missing or broken ({error}). Install it: "
            f"{sys.executable or 'python'} -m pip install {package}"
        ) from error
    check_format(settings.image_format)
    if 0 < settings.max_file_mb < LEAST_MB:
        raise InputError(
            f"No textured model fits into max_file_mb {settings.max_file_mb:g}: allow {LEAST_MB:g}, or 0 for no limit."
        )
    if settings.rasterizer == "nvdiffrast":
        gpu_raster.library(ctx.device)
    if settings.unwrap == "xatlas":
        check_xatlas()
