"""Flags of the transfer scripts, heads on a student, runs of several seeds and their summary."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from accelerate import PartialState
from torch import nn
from transformers import PreTrainedModel

from act_training.measure.metrics import mean_and_std
from act_training.report.run_folder import write_report
from act_training.run.script import ACTTrainingArguments, check_disjoint, describe_versions, errors_of
from act_training.run.training_state import write_text
from modeling_act import ACTStudentConfig
from modeling_act.errors import InputError
from modeling_act.hub import load_model

# Fields that decide the shapes of an encoder's weights, or what they mean: a student brings its own.
ENCODER_FIELDS = (
    "pointnet_dims", "embedding_dim", "position_dim", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "hidden_act", "qkv_bias", "use_cls_token", "residual_after_norm",
)  # fmt: skip


@dataclass
class TransferArguments(ACTTrainingArguments):
    """Flags of every transfer script; the defaults are the paper's."""

    student: str | None = field(default=None, metadata={"help": "folder or Hub id; default: from scratch"})
    test_split: str | None = field(default="test", metadata={"help": "split to read once, at the end; none: no test"})
    seeds: list[int] = field(default_factory=list, metadata={"help": "a run of each in OUTPUT_DIR/seed-N, and mean"})
    per_device_train_batch_size: int = 32
    weight_decay: float = 0.05
    max_grad_norm: float | None = field(default=10.0, metadata={"help": "clip the gradient's norm to this"})
    final_weights: Literal["last", "best", "ema"] = field(default="best", metadata={"help": "weights of the result"})

    def __post_init__(self):
        self.test_split, self.validation_split = self.test_split or None, self.validation_split or None
        super().__post_init__()
        splits = {"--train_split": self.train_split, "--validation_split": self.validation_split}
        check_disjoint(splits | {"--test_split": self.test_split})
        if self.validation_split is None and self.validation_share < 0.1:
            raise InputError(f"--validation_share must be at least 0.1 to choose by, got {self.validation_share}")
        if self.streaming:
            raise InputError("--streaming is for pretraining: transfer cuts a labelled set into train and validation")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds, default=0) < 0:
            raise InputError(f"--seeds must be different whole numbers from 0 up, got {self.seeds}")
        if self.seeds and self.push_to_hub:
            raise InputError("--push_to_hub uploads one model: choose a --seed instead of --seeds")


def make_model(
    kind: type[PreTrainedModel], options: TransferArguments, fields: dict, names: list[str], **settings
) -> PreTrainedModel:
    """Make a head of this kind on the student that `options` name, which keeps one it has, or on one from scratch.
    `fields` come from --model, `settings` from the script, `names` from the classes."""
    if clash := sorted(fields.keys() & (settings.keys() | {"num_labels", "id2label", "label2id"})):
        raise InputError(f"--model: {', '.join(clash)} follows from the set and the other flags")
    settings |= {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
    if len(settings["label2id"]) < len(names):
        raise InputError(f"{options.dataset_name}: two of its classes have one name, {', '.join(sorted(names))}")
    config, name = read_config(options, fields | settings), options.student
    if name is None:
        with errors_of("--model"):
            return kind(config)
    with errors_of(f"--student {name}"):
        model, loading = kind.from_pretrained(
            name, config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
    model.student.whitening, model.config.whitening = None, False  # of features that training changes
    unused = {"student.cls_token", "student.cls_position"} if model.student.cls_token is None else set()
    for problem, entries in loading.items():
        keys = {entry[0] if isinstance(entry, tuple) else str(entry) for entry in entries}  # mismatches have shapes
        if keys := sorted(key for key in keys - unused if key.startswith("student.")):
            raise InputError(f"--student {name} is no complete ACTStudent ({problem}: {', '.join(keys[:3])})")
    return model


def read_config(options: TransferArguments, fields: dict) -> ACTStudentConfig:
    """Read the configuration of --student, or make one from scratch, with these fields."""
    name = options.student
    if name is None:
        with errors_of("--model"):
            return ACTStudentConfig(**fields)
    if name.endswith((".pth", ".pt")):
        raise InputError(f"--student {name}: convert it first, with python -m modeling_act convert")
    with errors_of("--student"):
        own = load_model.read_config(name)
        if not isinstance(own, ACTStudentConfig):
            raise InputError(f"{name} is no ACT student but of the type {own.model_type}")
        config = ACTStudentConfig.from_pretrained(name, **fields)
        config.validate()
    for field_name in ENCODER_FIELDS:
        if getattr(own, field_name) != getattr(config, field_name):
            values = f"of --student {name} is {getattr(own, field_name)}, got {fields[field_name]}"
            raise InputError(f"--model: {field_name} {values}; leave it out, or train from scratch")
    return config


def required_points(config: ACTStudentConfig) -> int:
    """Number of points that a cloud must have for the groups of a model."""
    return max(config.num_groups, config.group_size)


def describe_student(options: TransferArguments) -> str:
    """Start of a sentence for the card: which student the model began from."""
    return f"An ACT student from `{options.student}`" if options.student else "A 3D Transformer from scratch"


def set_training(model: nn.Module) -> None:
    """Set training mode, without dropout, drop path and new batch statistics in parts that are frozen entirely."""
    model.train()
    for child in model.children():
        if parameters := list(child.parameters()):
            child.train(any(parameter.requires_grad for parameter in parameters))


def run_seeds(options: TransferArguments, train: Callable[[TransferArguments], dict[str, float]], title: str) -> None:
    """Train once, or once for each of --seeds in a folder of its own, with a summary beside them."""
    if not options.seeds:
        train(options)
        return
    folder, runs = Path(options.output_dir), []
    for seed in options.seeds:
        runs.append(train(replace(options, seed=seed, seeds=[], output_dir=str(folder / f"seed-{seed}"))))
    if PartialState().is_main_process:
        rows = [{"seed": seed} | run for seed, run in zip(options.seeds, runs, strict=True)]
        write_summary(
            folder,
            title,
            runs,
            {"seeds": options.seeds},
            {"each seed": rows},
            options.test_split or options.validation_name,
        )


def write_summary(
    folder: Path, title: str, runs: list[dict], about: dict, tables: dict[str, list[dict]], split: str
) -> None:
    """Write metrics.json and report.html of several runs: mean and sample std of each metric, measured on `split`."""
    summary, texts = mean_and_std(runs), {}
    record = about | {"split": split, "metrics": summary, "versions": describe_versions()}
    write_text(folder / "metrics.json", json.dumps(record, indent=1))
    for name, metric in summary.items():
        texts[name] = f"{metric['mean']:.4g}" + ("" if metric["std"] is None else f" +- {metric['std']:.4g}")
    write_report(folder / "report.html", title, texts, [], [], tables, recipe=about)
    print(f"{split}: " + "  ".join(f"{name} {text}" for name, text in texts.items()))
