"""Converts a point-cloud set from its published files to the format that every script here reads, with its card.

python training/prepare_data.py shapenet55 --raw ShapeNet55-34 --out data/shapenet55
python training/prepare_data.py modelnet40 --raw modelnet40_normal_resampled --out data/modelnet40
python training/prepare_data.py scanobjectnn --raw h5_files --out data/pb_t50_rs [--variant obj_bg] [--keep_mask]
python training/prepare_data.py shapenetpart --raw shapenetcore_partanno_segmentation_benchmark_v0_normal --out ...
python training/prepare_data.py s3dis --raw Stanford3dDataset_v1.2_Aligned_Version --out data/s3dis [--test_area 5]
python training/prepare_data.py scannet --raw votenet/scannet --out data/scannet
python training/prepare_data.py fewshot_modelnet40 --raw ModelNetFewshot --out data/5way10shot --way 5 --shot 10
python training/prepare_data.py folder --raw any_meshes_or_clouds --out data/mine [--test_share 0.2]
python training/prepare_data.py everyday_shapes --out data/everyday_shapes

An interrupted run continues when it is started again. Files that cannot be read are listed at the end, and the set is
not written, unless --skip_bad; --strict stops at the first.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, fields
from pathlib import Path

from act_training.prepare import objects
from act_training.prepare.everyday import NUM_CLOUDS, plan_everyday
from act_training.prepare.jobs import prepare_splits, summarize
from act_training.prepare.scenes import plan_s3dis, plan_scannet
from datasets import DatasetDict, disable_progress_bars
from huggingface_hub import DatasetCard

from modeling_act.errors import InputError, check_flags

SOURCES = {
    "shapenet55": objects.plan_shapenet55,
    "modelnet40": objects.plan_modelnet40,
    "scanobjectnn": objects.plan_scanobjectnn,
    "shapenetpart": objects.plan_shapenetpart,
    "s3dis": plan_s3dis,
    "scannet": plan_scannet,
    "fewshot_modelnet40": objects.plan_few_shot,
    "folder": objects.plan_folder,
    "everyday_shapes": plan_everyday,
    "broad_shapes": plan_everyday,
    "everyday_rooms": plan_everyday,
}
CARD = """---
pretty_name: {title}
tags: [point-cloud, 3d]
---
# {title}

{about}

| split | clouds | points (least, median, most) | classes |
|---|---|---|---|
{splits}

Columns: {columns}. {num_rejected} clouds were left out, see summary.json.

Written by `prepare_data.py` with {choices}. The licence is that of the source, which this copy does not change.

```python
from datasets import {loader}

clouds = {loader}("{title}")
clouds["{split}"].with_format("numpy")[0]["points"]  # (points, 3)
```
"""


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=SOURCES)
    parser.add_argument("--raw", type=Path, help="the folder with the set as published; not for generated sets")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; it must not exist")
    parser.add_argument("--num_points", type=int, help="farthest points of each cloud, or of a mesh's surface")
    parser.add_argument("--variant", choices=objects.SCANOBJECTNN_FILES, default="pb_t50_rs", help="of scanobjectnn")
    parser.add_argument("--keep_mask", action="store_true", help="scanobjectnn: background and object as point_labels")
    parser.add_argument("--test_area", type=int, default=5, help="of s3dis")
    parser.add_argument("--way", type=int, default=5, help="classes of a few-shot fold")
    parser.add_argument("--shot", type=int, default=10, help="training clouds a class of a few-shot fold")
    parser.add_argument("--validation_share", type=float, default=0.0, help="of folder: held out, of each class")
    parser.add_argument("--test_share", type=float, default=0.0, help="of folder: held out to test on, of each class")
    parser.add_argument("--seed", type=int, default=0, help="of points of meshes, generated sets and shares held out")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1, help="processes")
    bad = parser.add_mutually_exclusive_group()
    bad.add_argument("--skip_bad", action="store_true", help="leave out what cannot be read")
    bad.add_argument("--strict", action="store_true", help="stop at the first file that cannot be read")
    parser.add_argument("--push_to_hub", metavar="ORGANIZATION/NAME", help="upload the set and its card, private")
    check_flags(parser, arguments)
    return parser.parse_args(arguments)


def check_values(flags: argparse.Namespace) -> None:
    for name in ("num_points", "way", "shot", "num_workers"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    shares = {name: getattr(flags, name) for name in ("validation_share", "test_share")}
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise InputError(f"--{name} must lie between 0 and 1, got {share}")
    if sum(shares.values()) >= 1:
        raise InputError("--validation_share and --test_share must add up to less than 1")
    if any(shares.values()) and flags.source != "folder":
        raise InputError(f"--validation_share and --test_share go with folder: {flags.source} has splits of its own")
    if flags.seed < 0:
        raise InputError(f"--seed must not be negative, got {flags.seed}")
    if (flags.raw is None) != (flags.source in NUM_CLOUDS):
        raise InputError(f"{flags.source} {'is generated and takes no' if flags.raw else 'needs'} --raw")
    if flags.raw and not flags.raw.is_dir():
        raise InputError(f"--raw {flags.raw}: there is no such folder")
    if flags.out.exists():
        raise InputError(f"--out {flags.out}: is there already; remove it or name another")


def render_card(about: str, summary: dict, joined: DatasetDict, flags: argparse.Namespace) -> str:
    rows = []
    for split, figures in summary["splits"].items():
        points = ", ".join(f"{count:g}" for count in figures["points"])
        rows.append(f"| {split} | {figures['clouds']} | {points} | {len(figures['classes']) or ''} |")
    defaults = vars(objects.Choices("any"))
    chosen = [f"{name} {value}" for name, value in summary["choices"].items() if value != defaults[name]]
    return CARD.format(
        title=flags.push_to_hub or flags.out.name,
        about=about,
        splits="\n".join(rows),
        columns=", ".join(next(iter(joined.values())).column_names),
        num_rejected=len(summary["rejected"]) or "No",
        choices=", ".join(chosen),
        loader="load_dataset" if flags.push_to_hub else "load_from_disk",
        split=next(iter(joined)),
    )


def push_set(name: str, joined: DatasetDict, card: str) -> None:
    """Upload a set, and put the text of its card below the metadata that `datasets` writes for the Hub."""
    joined.push_to_hub(name, private=True)
    pushed = DatasetCard.load(name)
    pushed.text = card.split("---\n", 2)[2]
    pushed.push_to_hub(name)


def main(arguments: list[str]) -> None:
    flags = parse_flags(arguments)
    check_values(flags)
    disable_progress_bars()
    choices = objects.Choices(**{field.name: getattr(flags, field.name) for field in fields(objects.Choices)})
    plan = SOURCES[flags.source](flags.raw, choices)

    work = flags.out.parent / f".{flags.out.name}.shards"
    joined, rejected = prepare_splits(plan, choices, work, flags.num_workers, flags.strict)
    for bad in rejected:
        print(f"rejected: {bad['why']}", file=sys.stderr)
    if rejected and not flags.skip_bad:
        raise InputError(f"{len(rejected)} files or clouds are bad; mend them, or leave them out by --skip_bad")
    summary = {"choices": asdict(choices), "splits": summarize(joined)}
    summary |= {"rejected": rejected, "ignored_files": plan.ignored}
    card = render_card(plan.about, summary, joined, flags)

    draft = work / "set"  # so that --out appears at once, complete
    shutil.rmtree(draft, ignore_errors=True)
    joined.save_to_disk(str(draft))
    (draft / "README.md").write_text(card, encoding="utf-8")
    (draft / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    draft.rename(flags.out)
    if flags.push_to_hub:
        push_set(flags.push_to_hub, DatasetDict.load_from_disk(str(flags.out)), card)
    shutil.rmtree(work)

    for split, figures in summary["splits"].items():
        print(f"{split}: {figures['clouds']} clouds, points least, median, most {figures['points']}")
        print("  " + ", ".join(f"{name} {count}" for name, count in figures["classes"].items()))
    if plan.ignored:
        print(f"ignored, no clouds: {plan.ignored}")
    print(f"saved {flags.out}, {len(rejected)} left out")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, ImportError, OSError) as error:
        print(f"prepare_data.py: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)  # finished shards are kept
