"""TRELLIS.2 Core: one picture to a textured 3D model, in plain PyTorch."""
