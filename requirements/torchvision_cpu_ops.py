"""Import hook for an environment that pairs CPU torch with the package index's torchvision, which is built for CUDA.

That torchvision cannot load its operators, and importing it fails only because two operators that it describes are
undefined. Just before its first import this hook defines their schemas; nothing here calls the operators. Where
torchvision's own operators load, the hook does nothing. `make setup` installs this file with a .pth file that imports
it, since every process that the engine starts needs it.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Sees the first import of torchvision, then steps aside."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(fullname, path)
            if spec is not None and spec.origin is not None:
                define_missing_operators(Path(spec.origin).parent)
        return None


def define_missing_operators(torchvision: Path) -> None:
    """Define torchvision::nms and torchvision::qnms unless the package's own library provides them."""
    import torch

    for library in torchvision.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
            return
        except OSError:  # built against another torch
            continue
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", SCHEMA)


if not any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
    sys.meta_path.insert(0, TorchvisionFinder())
