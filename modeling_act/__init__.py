"""ACT, autoencoders as cross-modal teachers, for Hugging Face: point-cloud teachers, students and their heads.

Importing it registers every model, processor and pipeline with the Auto classes and `pipeline` of transformers.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForPreTraining, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_act import ACTStudentConfig, ACTTeacherConfig, ACTViewTeacherConfig
from .hub.load_model import ACTModelForClassification, ACTModelForFeatureExtraction, ACTModelForSegmentation
from .modeling_act_detection import ACTStudentForObjectDetection
from .modeling_act_student import (
    ACTStudent,
    ACTStudentForPartSegmentation,
    ACTStudentForPointCloudClassification,
    ACTStudentForPreTraining,
    ACTStudentForSemanticSegmentation,
)
from .modeling_act_teacher import ACTTeacher
from .modeling_act_view_teacher import ACTViewTeacher
from .pipelines_act import (
    ACTPointCloudClassificationPipeline,
    ACTPointCloudFeatureExtractionPipeline,
    ACTPointCloudSegmentationPipeline,
)
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
    "ACTViewTeacher",
    "ACTViewTeacherConfig",
]

AutoConfig.register("act_teacher", ACTTeacherConfig)
AutoConfig.register("act_view_teacher", ACTViewTeacherConfig)
AutoConfig.register("act_student", ACTStudentConfig)
AutoModel.register(ACTTeacherConfig, ACTTeacher)
AutoModel.register(ACTViewTeacherConfig, ACTViewTeacher)
AutoModel.register(ACTStudentConfig, ACTStudent)
AutoModelForPreTraining.register(ACTStudentConfig, ACTStudentForPreTraining)
for _config in (ACTTeacherConfig, ACTViewTeacherConfig, ACTStudentConfig):
    AutoFeatureExtractor.register(_config, ACTPointCloudProcessor)
    AutoProcessor.register(_config, ACTPointCloudProcessor)
    _config.register_for_auto_class()  # a saved folder then names its own code, for `trust_remote_code=True`

for _task, _pipeline, _loader in (
    ("point-cloud-feature-extraction", ACTPointCloudFeatureExtractionPipeline, ACTModelForFeatureExtraction),
    ("point-cloud-classification", ACTPointCloudClassificationPipeline, ACTModelForClassification),
    ("point-cloud-segmentation", ACTPointCloudSegmentationPipeline, ACTModelForSegmentation),
):
    PIPELINE_REGISTRY.register_pipeline(_task, _pipeline, _loader, type="multimodal")
