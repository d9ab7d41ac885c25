"""Convert released checkpoints (ACT, and the encoders of Point-MAE, Point-BERT and ReCon) for `from_pretrained`.

Prints the new name of every key, and fails on a key that has none and is not known to be unused. Its command is
`python -m modeling_act convert CHECKPOINT OUTPUT_DIR`; `--help` lists the options.
"""

import argparse
import re
import sys
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from .. import modeling_act_student as students
from ..backbone_families import load_backbone, read_block, shape_fields
from ..errors import InputError, check_flags
from ..modeling_act_teacher import ACTTeacher
from ..processing_act import ACTPointCloudProcessor
from . import official_keys as official
from .official_keys import State, rename, under
from .read_checkpoint import read_state


def convert(state: State, options: argparse.Namespace) -> tuple[PreTrainedModel, ACTTeacher | None]:
    """Convert the model in an official state dict, and the teacher that a stage-2 file has beside it."""
    beginnings = {key.split(".")[0] for key in state}
    encoders = beginnings & {"ACT_encoder", "MAE_encoder", "transformer_q"}
    if len(encoders) > 1:
        raise InputError(f"the file holds several encoders: {', '.join(sorted(encoders))}")
    if "ACT_encoder" in encoders:
        return convert_pretraining(state, options)
    if encoders:
        return convert_encoder(state, f"{encoders.pop()}.", options), None
    if {"codebook", "visual_embed"} <= beginnings:
        return convert_teacher(state, options), None
    if "cls_head_finetune" in beginnings:
        return convert_classifier(state, options), None
    if beginnings & {"propagation_0", "propagation_0_cls"}:
        return convert_segmenter(state, options), None
    raise InputError(f"no known checkpoint: its keys begin with {', '.join(sorted(beginnings)[:12])}")


def split(state: State, prefix: str) -> tuple[State, State]:
    """Split a state dict into the keys that begin with the prefix, and the rest."""
    matching = {key: tensor for key, tensor in state.items() if key.startswith(prefix)}
    return matching, {key: tensor for key, tensor in state.items() if key not in matching}


def convert_pretraining(state: State, options: argparse.Namespace) -> tuple[PreTrainedModel, ACTTeacher | None]:
    tokenizer, rest = split(state, "dvae_tokenizer.")
    rules = under("ACT_encoder.", official.ENCODER, "student.") + official.DECODER
    placed = rename(rest, rules, under("ACT_encoder.", official.UNUSED_HEADS))
    fields, teacher = student_fields(placed, options), None
    fields["decoder_num_hidden_layers"] = count_layers(placed, "decoder.layers.")
    fields["decoder_intermediate_size"] = placed["decoder.layers.0.mlp.fc1.weight"].shape[0]
    fields["teacher_dim"] = placed["decoder.projection.weight"].shape[0]
    if tokenizer:
        teacher = convert_teacher(tokenizer, options, prefix="dvae_tokenizer.")
        fields["group_size"] = teacher.config.group_size
    return build(students.ACTStudentForPreTraining, fields, placed), teacher


def convert_encoder(state: State, prefix: str, options: argparse.Namespace) -> students.ACTStudent:
    unused = official.UNUSED_IN[prefix] + under(prefix, official.UNUSED_HEADS)
    is_recon = any("_contrast." in key for key in state)
    if is_recon:  # its global queries have weights of their own, and groups never see them
        unused += under(prefix, [(r"cls_(token|pos)$", "ReCon's branch of global queries")])
    placed = rename(state, under(prefix, official.ENCODER, "student."), unused)
    fields = student_fields(placed, options) | {"residual_after_norm": is_recon}
    if not fields["use_cls_token"]:
        print("no class token in the file: use_cls_token=False, and `pooler_output` is [mean, max]")
    placed = {key.removeprefix("student."): tensor for key, tensor in placed.items()}
    return build(students.ACTStudent, fields, placed)


def convert_classifier(state: State, options: argparse.Namespace) -> students.ACTStudentForPointCloudClassification:
    placed = rename(state, under("", official.ENCODER, "student.") + official.CLASSIFIER, official.UNUSED_HEADS)
    last = max(int(key.split(".")[2]) for key in placed if key.startswith("classifier."))
    fields = student_fields(placed, options) | {"head": "mlp3" if last else "linear"}
    fields["num_labels"] = agree(options, "num_labels", placed[f"classifier.layers.{last}.weight"].shape[0])
    if last:
        fields["classifier_dim"] = placed["classifier.layers.0.weight"].shape[0]
    return build(students.ACTStudentForPointCloudClassification, fields, placed)


def convert_segmenter(state: State, options: argparse.Namespace) -> PreTrainedModel:
    placed = rename(state, under("", official.ENCODER, "student.") + official.SEGMENTER, official.UNUSED_HEADS)
    fields = student_fields(placed, options, num_groups=128) | {
        "num_labels": agree(options, "num_labels", placed["head.linear3.weight"].shape[0]),
        "propagation_dims": [placed[f"head.propagate{n}.weight"].shape[0] for n in (1, 2)],
        "segmentation_dims": [placed[f"head.linear{n}.weight"].shape[0] for n in (1, 2)],
        "use_cls_token": True,
    }
    if "category_embedding.weight" not in placed:
        return build(students.ACTStudentForSemanticSegmentation, fields, placed)
    fields["category_dim"], fields["num_categories"] = placed["category_embedding.weight"].shape[:2]
    return build(students.ACTStudentForPartSegmentation, fields, placed)


def convert_teacher(state: State, options: argparse.Namespace, prefix: str = "") -> ACTTeacher:
    heads = None if prefix else options.num_attention_heads  # of a stage-2 file the flag is about the student
    backbone, rest = split(state, f"{prefix}visual_embed.")
    weights, fields = convert_backbone(backbone, prefix)
    placed = rename(rest, under(prefix, official.TEACHER))
    placed |= {f"backbone.{key}": tensor for key, tensor in weights.items()}
    fields |= teacher_fields(placed) | {"num_groups": options.num_groups or 64, "skip_near_origin": True}
    agree(options, "group_size", fields["group_size"])
    fields["num_attention_heads"] = default_heads(fields["hidden_size"], heads)
    if options.backbone:
        fields |= named_backbone_fields(options.backbone, fields, heads)
    return build(ACTTeacher, fields, placed)


def convert_backbone(state: State, prefix: str) -> tuple[State, dict]:
    """Convert the keys under `visual_embed` to weights of `ACTBackbone`, and the fields that these determine."""
    state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    is_bert = any(key.startswith("visual_embed.0.layer.") for key in state)
    style = "bert" if is_bert else "clip" if "visual_embed.0.weight" in state else "timm"
    block_key, norms, (activation, epsilon, position) = official.BACKBONE_STYLES[style]
    blocks, others = {}, {}
    for key, tensor in state.items():
        if match := re.match(block_key, key):
            blocks.setdefault(int(match[1]), {})[key[match.end() :]] = tensor
            print(f"{prefix}{key} -> backbone.layers.{match[1]}")
        else:
            others[prefix + key] = tensor
    weights = {key.removeprefix("backbone."): tensor for key, tensor in rename(others, under(prefix, norms)).items()}
    for index, block in blocks.items():
        for role, tensor in read_block(block, f"{prefix}visual_embed, block {index}").items():
            weights[f"layers.{index}.{role}"] = tensor
    fields = {"hidden_act": activation, "layer_norm_eps": epsilon, "norm_position": position}
    return weights, fields | shape_fields(weights)


def named_backbone_fields(name: str, fields: dict, num_heads: int | None) -> dict:
    """Fields that the weights do not determine, read from the backbone itself: heads, activation and epsilon."""
    try:
        named, _ = load_backbone(name, pretrained=False)
    except (ImportError, OSError, RuntimeError) as error:
        print(f"{name} could not be read ({str(error).splitlines()[0]}): activation and heads are assumed")
        return {"backbone": name}
    if named["hidden_size"] != fields["hidden_size"]:
        raise InputError(f"{name} is {named['hidden_size']} wide, the checkpoint's backbone {fields['hidden_size']}")
    own = {key: named[key] for key in ("hidden_act", "layer_norm_eps", "norm_position") if key in named}
    return {"backbone": name, **own, "num_attention_heads": num_heads or named["num_attention_heads"]}


def student_fields(placed: State, options: argparse.Namespace, num_groups: int = 64) -> dict:
    def rows(key: str) -> int:
        return placed[f"student.{key}"].shape[0]

    hidden_size = rows("norm.weight")
    embedding_dim = rows("group_embedding.linear4.weight")
    fields = {
        "num_groups": options.num_groups or num_groups,
        "skip_near_origin": True,
        "pointnet_dims": [rows(f"group_embedding.linear{n}.weight") for n in (1, 2, 3)],
        "embedding_dim": None if embedding_dim == hidden_size else embedding_dim,
        "position_dim": rows("position_embedding.linear1.weight"),
        "hidden_size": hidden_size,
        "num_hidden_layers": count_layers(placed, "student.layers."),
        "num_attention_heads": default_heads(hidden_size, options.num_attention_heads),
        "intermediate_size": rows("layers.0.mlp.fc1.weight"),
        "qkv_bias": "student.layers.0.attention.qkv.bias" in placed,
        "use_cls_token": "student.cls_token" in placed,
    }
    return fields | {name: value for name in ("group_size", "num_labels") if (value := getattr(options, name))}


def teacher_fields(placed: State) -> dict:
    def rows(key: str) -> int:
        return placed[key].shape[0]

    graph_layer = "code_network.layers.{}.linear.weight"
    prompts = placed.get("prompts.tokens")
    prompt_type = "none" if prompts is None else "deep" if "prompts.deep_tokens" in placed else "shallow"
    return {
        "group_size": 4 * rows("decoder.linear3.weight") // 3,
        "pointnet_dims": [rows(f"group_embedding.linear{n}.weight") for n in (1, 2, 3)],
        "dgcnn_dims": [rows("code_network.input.weight"), *(rows(graph_layer.format(n)) for n in range(4))],
        "embedding_dim": rows("group_embedding.linear4.weight"),
        "codebook_size": rows("codebook"),
        "code_dim": placed["codebook"].shape[1],
        "feature_dim": rows("feature_network.output.weight"),
        "position_dim": rows("position_embedding.linear1.weight"),
        "decoder_dim": rows("decoder.linear1.weight"),
        "folding_dim": rows("decoder.fold2.weight"),
        "prompt_type": prompt_type,
        "num_prompts": 0 if prompts is None else prompts.shape[1],
    }


def count_layers(placed: State, prefix: str) -> int:
    indices = {int(key.removeprefix(prefix).split(".")[0]) for key in placed if key.startswith(prefix)}
    if indices != set(range(len(indices))):
        raise InputError(f"{prefix}* has gaps: layers {sorted(indices)}")
    return len(indices)


def default_heads(hidden_size: int, num_heads: int | None) -> int:
    """Number of heads, 64 wide as in the published models if it is not given."""
    if num_heads is None and hidden_size % 64:
        raise InputError(f"width {hidden_size} is not divisible by 64: give --num_attention_heads")
    return num_heads or hidden_size // 64


def agree(options: argparse.Namespace, flag: str, value: int) -> int:
    """Return a value of the file, which a flag must not contradict."""
    if getattr(options, flag) not in (None, value):
        raise InputError(f"--{flag} {getattr(options, flag)} contradicts the file, which has {value}")
    return value


def build(model_class: type[PreTrainedModel], fields: dict, placed: State) -> PreTrainedModel:
    """Build a model with exactly these weights, whose shapes may have other dimensions of one (convolutions)."""
    config = model_class.config_class(**fields)
    with torch.device("meta"):  # allocates nothing before the shapes are checked
        expected = model_class(config).state_dict()
    for key in expected:
        if key.endswith("num_batches_tracked"):
            placed.setdefault(key, torch.zeros((), dtype=torch.long))
    missing, surplus = sorted(expected.keys() - placed), sorted(placed.keys() - expected)
    if missing or surplus:
        raise InputError(f"{model_class.__name__} lacks {missing[:8]} and has no place for {surplus[:8]}")
    for key, tensor in placed.items():
        if tensor.squeeze().shape != expected[key].squeeze().shape:
            raise InputError(f"{key}: expected shape {tuple(expected[key].shape)}, the file has {tuple(tensor.shape)}")
        placed[key] = tensor.reshape(expected[key].shape)
    model = model_class(config)
    model.load_state_dict(placed, strict=True)
    return model.eval()


def make_processor(model: PreTrainedModel, options: argparse.Namespace) -> ACTPointCloudProcessor:
    """Make a processor that prepares clouds as the authors did in evaluation: 16 points a group, in the unit sphere
    unless they are of ScanObjectNN or of rooms; for finetuned models the farthest points of a normalized cloud."""
    finetuned = not isinstance(model, (students.ACTStudent, students.ACTStudentForPreTraining, ACTTeacher))
    in_rooms = isinstance(model, students.ACTStudentForSemanticSegmentation)
    return ACTPointCloudProcessor(
        num_points=options.num_points or 16 * model.config.num_groups,
        point_sampling="farthest" if finetuned and not in_rooms else "random",
        normalize=not (options.not_normalized or in_rooms) and ("cloud" if finetuned else True),
        up_axis="z" if in_rooms else "y",
        unit="m" if in_rooms else None,
        block_size=1.0 if in_rooms else None,
    )


def write(model: PreTrainedModel, folder: Path, options: argparse.Namespace) -> None:
    model.save_pretrained(folder)
    make_processor(model, options).save_pretrained(folder)
    print(f"wrote {type(model).__name__} with {model.num_parameters() / 1e6:.1f} M parameters to {folder}")


def main(arguments: list[str], program: str = "python -m modeling_act convert") -> int:
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR")
    parser.add_argument("--teacher_output", type=Path, metavar="DIR", help="folder for the teacher of a stage-2 file")
    parser.add_argument("--num_groups", type=int, help="groups of a cloud; default 64, segmentation 128")
    parser.add_argument("--group_size", type=int, help="points of a group; default 32, a teacher's in the file")
    parser.add_argument("--num_points", type=int, help="points of a cloud; default 16 a group")
    parser.add_argument("--not_normalized", action="store_true", help="clouds keep their size, as of ScanObjectNN")
    parser.add_argument("--num_attention_heads", type=int, help="heads of the converted model; default width / 64")
    parser.add_argument("--backbone", help="timm or transformers name of the teacher's Transformer")
    parser.add_argument("--num_labels", type=int, help="checked against the head; recorded where there is none")
    try:
        check_flags(parser, arguments)
        options = parser.parse_args(arguments)
        model, teacher = convert(read_state(options.checkpoint), options)
        if options.teacher_output and teacher is None:
            raise InputError("--teacher_output: the file carries no teacher beside another model")
        write(model, options.output_dir, options)
        if options.teacher_output:
            write(teacher, options.teacher_output, options)
        elif teacher is not None:
            print("the teacher, dvae_tokenizer.*, is not written; give --teacher_output to keep it")
        return 0
    except (ValueError, OSError, StrictDataclassError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    except (KeyError, IndexError) as error:
        print(f"error: {options.checkpoint} lacks what belongs at {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
