"""Stage 1, the teacher: a discrete autoencoder of point clouds around a frozen pretrained Transformer.

accelerate launch training/autoencode.py --config training/recipes/autoencode_vitb_shapenet55.yaml \\
    --dataset_name PREPARED_SHAPENET55 --output_dir outputs/teacher
torchrun --nproc_per_node 8 training/autoencode.py ...            several processes
python training/autoencode.py --config training/recipes/autoencode_small.yaml --output_dir outputs/teacher
... --resume_from_checkpoint latest                               continues after any interruption, bit for bit
"""

from dataclasses import dataclass
from typing import Literal

import torch
from act_training.report.run_folder import finish_run, save_pictures
from act_training.run.script import ACTTrainingArguments, errors_of, parse_arguments, parse_mapping, run_script, warn
from act_training.run.training_run import TrainingRun
from act_training.run.training_state import calibrate_batch_norm, cosine_between
from act_training.tasks.pretraining import code_use, evaluate_autoencoder, is_collapsed
from torch import Tensor
from transformers.hf_argparser import HfArg

from modeling_act import ACTTeacher, ACTTeacherConfig
from modeling_act.errors import InputError
from modeling_act.inference import in_eval_mode

USAGE = """from modeling_act import ACTTeacher

teacher = ACTTeacher.from_pretrained("{name}").eval()
features = teacher.get_teacher_features(points)  # points (batch, {num_points}, 3) -> (batch, {num_groups}, {width})"""
COLLAPSED = (
    "the codebook has collapsed: {codes_used} of {codebook_size} codes are in use, as diverse as {perplexity:.1f} "
    "equally used ones. Such a teacher distinguishes groups by their position only. Train longer, or with "
    "the codebook settings of training/recipes/autoencode_small.yaml"
)


@dataclass
class AutoencodeArguments(ACTTrainingArguments):
    backbone: str = HfArg(default="google/vit-base-patch16-384", help="Hub id, folder or timm name of a ViT, BERT ...")
    pretrained_backbone: bool = HfArg(default=True, help="false: random weights, the control")
    logit_scale: float = HfArg(default=1.0, help="initial scale of the logits; the paper's is 1")
    calibrate_logits: bool = HfArg(default=False, help="start each code's logits with mean 0 and std logit_scale")
    code_mode: Literal["gumbel", "soft"] = HfArg(default="gumbel", help="soft: without noise")
    temperature_start: float = 1.0
    temperature_end: float = 0.0625
    temperature_steps: float = HfArg(default=100_000, help="at most 1: a share of the run")
    kl_weight: float = 0.1
    kl_over: Literal["cloud", "batch"] = HfArg(default="cloud", help="cloud: each uses all codes; batch: all together")
    kl_start: float = HfArg(default=10_000, help="steps without KL; at most 1: a share of the run")
    kl_steps: float = HfArg(default=100_000, help="steps to the full weight; at most 1: a share")

    def __post_init__(self):
        super().__post_init__()
        for name in ("temperature_start", "temperature_end", "logit_scale"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name} must be positive, got {getattr(self, name)}")


def make_teacher(options: AutoencodeArguments, fields: dict, clouds: Tensor) -> ACTTeacher:
    """Make a teacher around the backbone, with batch statistics and logits calibrated on `clouds`."""
    with errors_of(f"--backbone {options.backbone}"):
        teacher = ACTTeacher.from_backbone(options.backbone, pretrained=options.pretrained_backbone, **fields)
    teacher = teacher.to(clouds.device).train()
    calibrate_batch_norm(teacher, teacher, clouds.split(64))
    if options.calibrate_logits:
        calibrate_logits(teacher, clouds, options.logit_scale)
    else:
        torch.nn.init.constant_(teacher.code_network.norm.weight, options.logit_scale)
    return teacher


@torch.no_grad()
def calibrate_logits(teacher: ACTTeacher, clouds: Tensor, scale: float) -> None:
    """Set the last norm before the logits so that no code is likelier than another over these clouds."""
    norm = teacher.code_network.norm
    logits = torch.cat([teacher(points).logits for points in clouds.split(64)]).flatten(0, 1).float()
    logits = torch.where(logits < 0, logits / 0.2, logits)  # the activation after the norm undone
    norm.weight.copy_(scale / logits.std(0).clamp_min(1e-6))
    norm.bias.copy_(-logits.mean(0) * norm.weight)


@torch.no_grad()
def draw_samples(teacher: ACTTeacher, points: Tensor) -> list[dict]:
    """Return panels of a picture for each of a few clouds (batch, points, 3)."""
    with in_eval_mode(teacher):
        output = teacher(points)
    panels = zip(points, output.centers, output.reconstruction, strict=True)
    return [dict(zip(("input", "centers", "reconstruction"), panel, strict=True)) for panel in panels]


def main(arguments: list[str]) -> None:
    options = parse_arguments(AutoencodeArguments, __doc__, arguments)
    fields = parse_mapping("--model", options.model, set(ACTTeacherConfig.__dataclass_fields__))
    run = TrainingRun(options)
    run.open_data(max(fields.get(name, getattr(ACTTeacherConfig, name)) for name in ("num_groups", "group_size")))
    teacher = run.prepare(make_teacher(options, fields, run.data.sample_clouds(256)["points"]))
    codebook_size = teacher.config.codebook_size
    samples = run.data.sample_clouds(4)["points"]

    def measure() -> dict[str, float]:
        with run.autocast():
            return evaluate_autoencoder(teacher, run.validation_batches(), run.accelerator)

    def validate() -> dict[str, float]:
        metrics = measure()
        run.log_validation("validation", metrics, best_by="reconstruction_loss")
        return metrics

    if run.global_step == 0 or run.finished:
        metrics = validate()
    lengths = options.temperature_steps, options.kl_start, options.kl_steps  # as shares of the run, or in steps
    temperature_steps, kl_start, kl_steps = map(run.length.share, lengths)
    for batch in run.batches():
        step = run.global_step
        temperature = cosine_between(step, 0, temperature_steps, options.temperature_start, options.temperature_end)
        kl_weight = cosine_between(step, kl_start, kl_steps, 0.0, options.kl_weight)
        with run.autocast():
            kl = {"kl_weight": kl_weight, "kl_over": options.kl_over}
            output = run.model(batch["points"], temperature=temperature, code_mode=options.code_mode, **kl)
        run.step(output.loss)

        if run.is_log_due():
            codes = torch.bincount(output.code_indices.flatten(), minlength=codebook_size)
            run.log_training(
                reconstruction_loss=output.reconstruction_loss.item(),
                kl_loss=output.kl_loss.item(),
                temperature=temperature,
                kl_weight=kl_weight,
                logit_scale=output.logits.detach().float().std(-1).mean().item(),
                **code_use(codes.cpu()),
            )
        if run.is_due(options.validation_epochs):
            metrics = validate()
        if run.is_due(options.picture_epochs):
            save_pictures(run, draw_samples(teacher, samples))

    if run.load_final_weights():
        metrics = measure()
    collapsed = is_collapsed(metrics, codebook_size)
    if collapsed and run.accelerator.is_main_process:
        warn(COLLAPSED.format(codebook_size=codebook_size, **metrics))
    text = f"A point-cloud autoencoder (ACT, stage 1) around the frozen `{options.backbone}`."
    name, sizes = options.hub_model_id or run.folder.name, {"num_groups": teacher.config.num_groups}
    usage = USAGE.format(name=name, num_points=options.num_points, width=teacher.config.feature_dim, **sizes)
    metrics["codebook_collapsed"] = collapsed
    finish_run(run, "ACT teacher", text, usage, metrics, clouds=draw_samples(teacher, samples))


if __name__ == "__main__":
    run_script(main)
