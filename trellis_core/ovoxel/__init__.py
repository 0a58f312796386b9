"""O-Voxel: the flexible dual grid to and from meshes, its attributes, and look-ups in sparse grids."""
