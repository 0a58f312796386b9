"""Triangle meshes alone: topology, cleanup, remeshing, decimation, distances."""
