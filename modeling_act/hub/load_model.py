"""Load any model of this package for inference, complete or not at all. `from_pretrained` initializes weights that a
checkpoint lacks at random, for finetuning; pipelines, command line and app must never do that."""

import os
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .. import modeling_act_student as students
from ..act_layers import HUB_ARGUMENTS, locate
from ..configuration_act import ACTStudentConfig, ACTTeacherConfig, ACTViewTeacherConfig
from ..errors import InputError
from ..modeling_act_detection import ACTStudentForObjectDetection
from ..modeling_act_teacher import ACTTeacher
from ..modeling_act_view_teacher import ACTViewTeacher

MODELS = {
    "ACTStudent": students.ACTStudent,
    "ACTStudentForPreTraining": students.ACTStudentForPreTraining,
    "ACTStudentForPointCloudClassification": students.ACTStudentForPointCloudClassification,
    "ACTStudentForPartSegmentation": students.ACTStudentForPartSegmentation,
    "ACTStudentForSemanticSegmentation": students.ACTStudentForSemanticSegmentation,
    "ACTStudentForObjectDetection": ACTStudentForObjectDetection,
    "ACTTeacher": ACTTeacher,
    "ACTViewTeacher": ACTViewTeacher,
}
SEGMENTERS = ("ACTStudentForPartSegmentation", "ACTStudentForSemanticSegmentation")


def read_config(name: str, **options: Any) -> PreTrainedConfig:
    """Read the configuration of a folder, Hub id or model of the package, which must be a model of ACT."""
    name = locate(name)
    if not os.path.isdir(name) and (os.path.isabs(name) or name.count("/") != 1):
        raise InputError(f"{name}: there is no such folder, nor is it ORGANIZATION/NAME on the Hub")
    try:  # no question on the terminal whether to trust remote code, which models of this package do not need
        config = AutoConfig.from_pretrained(name, **{"trust_remote_code": False} | options)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise InputError(f"{name}: no model can be read from there ({one_line(error)})") from error
    if not isinstance(config, (ACTStudentConfig, ACTTeacherConfig, ACTViewTeacherConfig)):
        raise InputError(f"{name} holds no model of ACT but one of the type {config.model_type!r}")
    return config


def load_model(name: str, *wanted: str, config: PreTrainedConfig | None = None, **options: Any) -> PreTrainedModel:
    """Load a model in eval mode. `wanted` names the accepted classes; `"ACTStudent"` also loads a head's encoder."""
    options.pop("_from_pipeline", None)
    name = locate(name)
    hub = {key: options[key] for key in HUB_ARGUMENTS if key in options}
    config = config if isinstance(config, PreTrainedConfig) else read_config(name, **hub)
    saved = chosen = (config.architectures or ["unknown"])[0]
    if wanted and saved not in wanted:
        chosen = "ACTStudent" if "ACTStudent" in wanted and isinstance(config, ACTStudentConfig) else None
    if chosen not in MODELS:
        raise InputError(f"{name} holds {saved}, where {' or '.join(wanted or MODELS)} is needed")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the error below names missing and unexpected weights, in one line
    try:
        model, report = MODELS[chosen].from_pretrained(name, config=config, output_loading_info=True, **options)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{name}: {one_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    if chosen != saved:
        del report["unexpected_keys"]  # the head's
    if problems := [f"{what}: {', '.join(sorted(map(str, keys))[:3])}" for what, keys in report.items() if keys]:
        raise InputError(f"{name} is no complete {chosen} ({'; '.join(problems)})")
    return model.eval()


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class ACTModelForFeatureExtraction:
    """Loader of a model for `transformers.pipeline`, as the two below."""

    model_classes = ("ACTStudent",)

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> PreTrainedModel:
        return load_model(name, *cls.model_classes, **options)


class ACTModelForClassification(ACTModelForFeatureExtraction):
    model_classes = ("ACTStudentForPointCloudClassification",)


class ACTModelForSegmentation(ACTModelForFeatureExtraction):
    model_classes = SEGMENTERS
