"""ACT, autoencoders as cross-modal teachers, for Hugging Face: point-cloud teachers, students and their heads.

Importing it registers every model with the Auto classes of transformers, and the pipelines. The models themselves are
imported when one is first used: `transformers.PreTrainedModel` alone costs more than all of `import transformers`.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForPreTraining, PreTrainedConfig

from .configuration_act_student import ACTStudentConfig
from .configuration_act_teacher import ACTTeacherConfig

if TYPE_CHECKING:
    from .modeling_act_detection import ACTStudentForObjectDetection
    from .modeling_act_student import (
        ACTStudent,
        ACTStudentForPartSegmentation,
        ACTStudentForPointCloudClassification,
        ACTStudentForPreTraining,
        ACTStudentForSemanticSegmentation,
    )
    from .modeling_act_teacher import ACTTeacher
    from .processing_act import ACTPointCloudProcessor

__version__ = "0.1.0"

__all__ = [
    "ACTPointCloudProcessor",
    "ACTStudent",
    "ACTStudentConfig",
    "ACTStudentForObjectDetection",
    "ACTStudentForPartSegmentation",
    "ACTStudentForPointCloudClassification",
    "ACTStudentForPreTraining",
    "ACTStudentForSemanticSegmentation",
    "ACTTeacher",
    "ACTTeacherConfig",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = ".modeling_act_teacher" if name.startswith("ACTTeacher") else ".modeling_act_student"
    if name == "ACTPointCloudProcessor":
        module = ".processing_act"
    if name == "ACTStudentForObjectDetection":
        module = ".modeling_act_detection"
    globals()[name] = value = getattr(import_module(module, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Lazy:
    """Stands in an Auto class for a model or processor that is imported when the Auto class uses it."""

    def __init__(self, name: str, config_class: type[PreTrainedConfig]):
        self.__name__ = name
        self.config_class = config_class

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(import_module(__name__), self.__name__), attribute)


AutoConfig.register("act_teacher", ACTTeacherConfig)
AutoConfig.register("act_student", ACTStudentConfig)
AutoModel.register(ACTTeacherConfig, _Lazy("ACTTeacher", ACTTeacherConfig))
AutoModel.register(ACTStudentConfig, _Lazy("ACTStudent", ACTStudentConfig))
for _config in (ACTTeacherConfig, ACTStudentConfig):
    AutoFeatureExtractor.register(_config, _Lazy("ACTPointCloudProcessor", _config))
AutoModelForPreTraining.register(ACTStudentConfig, _Lazy("ACTStudentForPreTraining", ACTStudentConfig))

_PIPELINES = {  # who serves each task, and what loads its model
    "point-cloud-feature-extraction": ("ACTPointCloudFeatureExtractionPipeline", "ACTModelForFeatureExtraction"),
    "point-cloud-classification": ("ACTPointCloudClassificationPipeline", "ACTModelForClassification"),
    "point-cloud-segmentation": ("ACTPointCloudSegmentationPipeline", "ACTModelForSegmentation"),
}


def _register_pipelines() -> None:
    registry = import_module("transformers.pipelines").PIPELINE_REGISTRY
    pipelines, loading = import_module(".pipelines_act", __name__), import_module(".loading", __name__)
    for task, (served_by, loaded_by) in _PIPELINES.items():
        registry.register_pipeline(task, getattr(pipelines, served_by), getattr(loading, loaded_by), type="multimodal")


class _WhenPipelinesAreImported(MetaPathFinder):
    """Registers ours after `transformers.pipelines` was imported, which alone takes longer than this whole package."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "transformers.pipelines":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            if self in sys.meta_path:  # a spec may be looked up, and its module imported, more than once
                sys.meta_path.remove(self)
            _register_pipelines()

        spec.loader.exec_module = execute_and_register
        return spec


if "transformers.pipelines" in sys.modules:
    _register_pipelines()
else:
    sys.meta_path.insert(0, _WhenPipelinesAreImported())

# What a saved folder names for `trust_remote_code=True`, where this package is absent; models say it in their files.
for _config in (ACTTeacherConfig, ACTStudentConfig):
    _config.register_for_auto_class()
