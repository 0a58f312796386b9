"""Lets a torchvision that was built for CUDA be imported beside a CPU-only PyTorch; put on the host's PYTHONPATH.

Its compiled operators cannot load there. Its Python part only needs the names of two of them, so these are declared; a
call of one still fails.
"""

import importlib.abc
import sys


class _DeclareFirst(importlib.abc.MetaPathFinder):
    """Finds nothing; sees the first import of torchvision before it happens."""

    library = None

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and _DeclareFirst.library is None:
            import torch

            _DeclareFirst.library = torch.library.Library("torchvision", "FRAGMENT")
            if not torch.cuda.is_available():
                self._declare()
        return None

    def _declare(self):
        for signature in ("nms", "qnms"):
            try:
                self.library.define(f"{signature}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            except RuntimeError:
                pass  # declared by a torchvision that fits


sys.meta_path.insert(0, _DeclareFirst())
