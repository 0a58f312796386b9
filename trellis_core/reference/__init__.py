"""The published post-processing, kept bit-close to the original for comparison (asset setting `reference_quirks`).

It reproduces accidental behaviour on purpose: caps that ignore winding, a simplifier without link test, remeshing to a
double wall inflated by the band, truncated texels, opaque WebP. The default asset pipeline does none of this.
"""
