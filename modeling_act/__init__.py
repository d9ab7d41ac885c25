"""ACT, autoencoders as cross-modal teachers, for Hugging Face: point-cloud teachers, students and their heads.

Importing it registers every model with the Auto classes of transformers. The models themselves are imported when one
is first used: `transformers.PreTrainedModel` alone costs more than all of `import transformers`.
"""

from importlib import import_module
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

# What a saved folder names for `trust_remote_code=True`, where this package is absent; models say it in their files.
for _config in (ACTTeacherConfig, ACTStudentConfig):
    _config.register_for_auto_class()
