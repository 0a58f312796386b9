"""From a decoded mesh and its PBR voxels to a finished model: what it is made of, its report, its formats and size."""
