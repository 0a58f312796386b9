"""The process in which xatlas works: `python xatlas_child.py IN.npz OUT.npz SIZE PADDING`.

A process of its own can be stopped at any moment, and a mesh that xatlas dies of ends nothing else. Imports nothing of ours.
"""

import sys

import numpy as np
import xatlas


def main(source: str, target: str, size: int, padding: int) -> None:
    """Vertices float32 [V, 3] and faces uint32 [F, 3] to the vertices, faces, UVs and charts of an atlas."""
    given = np.load(source)
    atlas = xatlas.Atlas()
    atlas.add_mesh(given["vertices"], given["faces"])
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = size, padding, True
    packing.rotate_charts = False  # it turns them by swapping the axes, which mirrors them
    atlas.generate(pack_options=packing)
    origin, faces, uvs = atlas.get_mesh(0)
    _, chart = atlas.get_mesh_vertex_assignment(0)
    longest = max(atlas.width, atlas.height, 1)
    uvs = uvs * np.array([atlas.width / longest, atlas.height / longest], np.float32)
    np.savez(target, origin=origin, faces=faces, uvs=uvs, chart=chart, atlases=atlas.atlas_count)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
