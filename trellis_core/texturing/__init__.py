"""From a clean surface to a textured one: charts, packing, rasterising, baking."""
