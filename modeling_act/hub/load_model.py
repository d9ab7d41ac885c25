"""Loads whatever model of this package a folder or Hub id holds, to be used as it is: whole, or not at all.

`from_pretrained` draws weights that a checkpoint lacks at random, as finetuning wants it. Pipelines, command line and
app must never do that.
"""

import os
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..configuration_act_student import ACTStudentConfig
from ..configuration_act_teacher import ACTTeacherConfig
from ..errors import InputError
from ..modeling_act_detection import ACTStudentForObjectDetection
from ..modeling_act_student import (
    ACTStudent,
    ACTStudentForPartSegmentation,
    ACTStudentForPointCloudClassification,
    ACTStudentForPreTraining,
    ACTStudentForSemanticSegmentation,
)
from ..modeling_act_teacher import ACTTeacher
from ..safe_loading import HUB_ARGUMENTS

MODELS = {
    model.__name__: model
    for model in (
        ACTStudent,
        ACTStudentForPreTraining,
        ACTStudentForPointCloudClassification,
        ACTStudentForPartSegmentation,
        ACTStudentForSemanticSegmentation,
        ACTStudentForObjectDetection,
        ACTTeacher,
    )
}
SEGMENTERS = ("ACTStudentForPartSegmentation", "ACTStudentForSemanticSegmentation")


def read_config(name: str, **options: Any) -> PreTrainedConfig:
    """The configuration of a folder or Hub id, which must be of this package."""
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, options.get("subfolder", ""), "config.json")):
        raise InputError(f"{name}: no model can be read from there, it holds no config.json")
    if not os.path.isdir(name) and (os.path.isabs(name) or name.count("/") != 1):
        raise InputError(f"{name}: there is no such folder, nor is it ORGANIZATION/NAME on the Hub")
    try:  # models of this package need no code of others, and nobody is to be asked whether it may run
        config = AutoConfig.from_pretrained(name, **{"trust_remote_code": False} | options)
    except OSError as error:
        raise InputError(f"{name}: no model can be read from there ({_one_line(error)})") from error
    except ValueError as error:
        raise InputError(f"{name}: {_one_line(error)}") from error
    if not isinstance(config, (ACTStudentConfig, ACTTeacherConfig)):
        raise InputError(f"{name} holds no model of ACT but one of the type {config.model_type!r}")
    return config


def load_model(name: str, *wanted: str, config: PreTrainedConfig | None = None, **options: Any) -> PreTrainedModel:
    """The model in eval mode. `wanted` names the classes that would do; `"ACTStudent"` is in every model of a student
    that has a class token where its configuration says so."""
    options.pop("_from_pipeline", None)
    hub = {key: options[key] for key in HUB_ARGUMENTS if key in options}
    config = config if isinstance(config, PreTrainedConfig) else read_config(name, **hub)
    held = (config.architectures or ["unknown"])[0]
    chosen = held
    if wanted and held not in wanted:
        chosen = "ACTStudent" if "ACTStudent" in wanted and isinstance(config, ACTStudentConfig) else None
    if chosen not in MODELS:
        raise InputError(f"{name} holds {held}, where {' or '.join(wanted or MODELS)} is needed")
    kind = MODELS[chosen]
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing or left over is told below, in one line
    try:
        model, report = kind.from_pretrained(name, config=config, output_loading_info=True, **options)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{name}: {_one_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    allowed = set() if chosen == held else {"unexpected_keys"}  # the head, which an encoder leaves behind
    problems = {what: sorted(map(str, keys))[:3] for what, keys in report.items() if keys and what not in allowed}
    if problems:
        told = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in problems.items())
        raise InputError(f"{name} is no complete {chosen} ({told})")
    return model.eval()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class ACTModelForFeatureExtraction:
    """What `transformers.pipeline` loads a model with, as the two below."""

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> PreTrainedModel:
        return load_model(name, "ACTStudent", **options)


class ACTModelForClassification:
    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> PreTrainedModel:
        return load_model(name, "ACTStudentForPointCloudClassification", **options)


class ACTModelForSegmentation:
    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> PreTrainedModel:
        return load_model(name, *SEGMENTERS, **options)


__all__ = ["load_model", "read_config"]
