"""Lets torchvision import beside a CPU-only torch.

PyPI's torchvision for Linux is built for CUDA. Beside a CPU build of torch its extension does not load, and `import
torchvision` ends in "operator torchvision::nms does not exist"; with it fails timm, and nearly every model of
transformers, which imports torchvision wherever it finds it installed. Declaring the schemas of the two operators that
torchvision itself registers something for is enough, since nothing here calls them. Where torchvision loads its own,
nothing is declared.

Python runs this file at start-up of every process with this folder on PYTHONPATH; conftest.py runs it in pytest's own,
and `make` copies it into the environment it builds.
"""

import sys


class TorchvisionOperators:
    """A finder that finds nothing: the import of the first module to need the operators is its cue to declare them."""

    library = None  # the declaration lasts as long as this object

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        # By now torchvision has imported torch and tried to load its extension.
        if name == "torchvision._meta_registrations":
            import torch

            if not hasattr(torch.ops.torchvision, "nms"):
                cls.library = torch.library.Library("torchvision", "DEF")
                cls.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                cls.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, TorchvisionOperators)
