"""Mesh files: writing GLB, reading it back, its encodings."""
