"""ACT, autoencoders as cross-modal teachers, for Hugging Face: point-cloud teachers, students and their heads.

Importing it registers every model with the Auto classes of transformers.
"""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from .configuration_act_student import ACTStudentConfig
from .configuration_act_teacher import ACTTeacherConfig
from .modeling_act_student import (
    ACTStudent,
    ACTStudentForPartSegmentation,
    ACTStudentForPointCloudClassification,
    ACTStudentForPreTraining,
    ACTStudentForSemanticSegmentation,
)
from .modeling_act_teacher import ACTTeacher

__version__ = "0.1.0"

AutoConfig.register("act_teacher", ACTTeacherConfig)
AutoConfig.register("act_student", ACTStudentConfig)
AutoModel.register(ACTTeacherConfig, ACTTeacher)
AutoModel.register(ACTStudentConfig, ACTStudent)
AutoModelForPreTraining.register(ACTStudentConfig, ACTStudentForPreTraining)

# What a saved folder names for `trust_remote_code=True`, where this package is absent.
for _config in (ACTTeacherConfig, ACTStudentConfig):
    _config.register_for_auto_class()
ACTStudentForPreTraining.register_for_auto_class("AutoModelForPreTraining")
for _model in (
    ACTTeacher,
    ACTStudent,
    ACTStudentForPartSegmentation,
    ACTStudentForPointCloudClassification,
    ACTStudentForSemanticSegmentation,
):
    _model.register_for_auto_class("AutoModel")

__all__ = [
    "ACTStudent",
    "ACTStudentConfig",
    "ACTStudentForPartSegmentation",
    "ACTStudentForPointCloudClassification",
    "ACTStudentForPreTraining",
    "ACTStudentForSemanticSegmentation",
    "ACTTeacher",
    "ACTTeacherConfig",
]
