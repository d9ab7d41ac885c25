"""Turns a point-cloud set as researchers have it on disk into one that every script here reads, with its card.

python training/prepare_data.py shapenet55 --raw ShapeNet55-34 --out data/shapenet55
python training/prepare_data.py modelnet40 --raw modelnet40_normal_resampled --out data/modelnet40
python training/prepare_data.py scanobjectnn --raw h5_files --out data/pb_t50_rs [--variant obj_bg] [--keep_mask]
python training/prepare_data.py shapenetpart --raw shapenetcore_partanno_segmentation_benchmark_v0_normal --out ...
python training/prepare_data.py s3dis --raw Stanford3dDataset_v1.2_Aligned_Version --out data/s3dis [--test_area 5]
python training/prepare_data.py scannet --raw votenet/scannet --out data/scannet
python training/prepare_data.py fewshot_modelnet40 --raw ModelNetFewshot --out data/5way10shot --way 5 --shot 10
python training/prepare_data.py folder --raw any_meshes_or_clouds --out data/mine [--num_points 2048]

A run that is interrupted goes on where it was when it is started again. Files that cannot be read are listed, and the
set is not written, unless --skip_bad.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import fields
from pathlib import Path

from act_training.prepare.few_shot import plan_few_shot
from act_training.prepare.jobs import join_parts, make_parts, split_parts, summarize
from act_training.prepare.objects import (
    SCANOBJECTNN_FILES,
    Choices,
    Plan,
    plan_folder,
    plan_modelnet40,
    plan_scanobjectnn,
    plan_shapenet55,
    plan_shapenetpart,
)
from act_training.prepare.s3dis import plan_s3dis
from act_training.prepare.scannet import plan_scannet
from datasets import DatasetDict, disable_progress_bars
from huggingface_hub import DatasetCard
from tqdm import tqdm

from modeling_act.errors import InputError

SOURCES = {
    "shapenet55": plan_shapenet55,
    "modelnet40": plan_modelnet40,
    "scanobjectnn": plan_scanobjectnn,
    "shapenetpart": plan_shapenetpart,
    "s3dis": plan_s3dis,
    "scannet": plan_scannet,
    "fewshot_modelnet40": plan_few_shot,
    "folder": plan_folder,
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

Columns: {columns}. {rejected}

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
    parser.add_argument("--raw", type=Path, required=True, help="the folder that holds the set as it was published")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; it must not exist")
    parser.add_argument("--num_points", type=int, help="keep as many of each cloud, or draw as many from each mesh")
    parser.add_argument("--variant", choices=SCANOBJECTNN_FILES, default="pb_t50_rs", help="of scanobjectnn")
    parser.add_argument("--keep_mask", action="store_true", help="scanobjectnn: background and object as point_labels")
    parser.add_argument("--test_area", type=int, default=5, help="of s3dis")
    parser.add_argument("--way", type=int, default=5, help="classes of a few-shot fold")
    parser.add_argument("--shot", type=int, default=10, help="training clouds a class of a few-shot fold")
    parser.add_argument("--seed", type=int, default=0, help="of points drawn from meshes and of drawn folds")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--files_per_part", type=int, help="how many files a run can lose when it is interrupted")
    parser.add_argument("--skip_bad", action="store_true", help="leave out what cannot be read")
    parser.add_argument("--push_to_hub", metavar="ORGANIZATION/NAME", help="upload the set and its card, private")
    return parser.parse_args(arguments)


def check_flags(flags: argparse.Namespace) -> None:
    for name in ("num_points", "way", "shot", "num_workers", "files_per_part"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    if flags.seed < 0:
        raise InputError(f"--seed must not be negative, got {flags.seed}")
    if not flags.raw.is_dir():
        raise InputError(f"--raw {flags.raw}: there is no such folder")
    if flags.out.exists():
        raise InputError(f"--out {flags.out}: is there already; remove it or name another")


def save_set(out: Path, work: Path, joined: DatasetDict, card: str, summary: dict) -> None:
    """The folder appears at once, complete."""
    draft = work / "set"
    if draft.exists():
        shutil.rmtree(draft)
    joined.save_to_disk(str(draft))
    (draft / "README.md").write_text(card, encoding="utf-8")
    (draft / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    draft.rename(out)


def push_set(name: str, joined: DatasetDict, card: str) -> None:
    joined.push_to_hub(name, private=True)
    pushed = DatasetCard.load(name)  # `datasets` wrote what the Hub needs to know of splits and columns
    pushed.text = card.split("---\n", 2)[2]
    pushed.push_to_hub(name)


def render_card(plan: Plan, summary: dict, joined: DatasetDict, flags: argparse.Namespace) -> str:
    rows = []
    for split, found in summary["splits"].items():
        points = ", ".join(f"{count:g}" for count in found["points"] or ())
        rows.append(f"| {split} | {found['clouds']} | {points} | {len(found['classes']) or ''} |")
    left_out = len(summary["rejected"])
    defaults = {field.name: field.default for field in fields(Choices)}
    chosen = {name: value for name, value in summary["choices"].items() if value != defaults[name]}
    return CARD.format(
        title=flags.push_to_hub or flags.out.name,
        about=plan.about,
        splits="\n".join(rows),
        columns=", ".join(next(iter(joined.values())).column_names),
        rejected=f"{left_out} clouds were left out, see summary.json." if left_out else "No cloud was left out.",
        choices=", ".join(f"{name} {value}" for name, value in chosen.items()),
        loader="load_dataset" if flags.push_to_hub else "load_from_disk",
        split=next(iter(joined)),
    )


def main(arguments: list[str]) -> None:
    flags = parse_flags(arguments)
    check_flags(flags)
    disable_progress_bars()
    choices = Choices(**{field.name: getattr(flags, field.name) for field in fields(Choices)})
    plan = SOURCES[flags.source](flags.raw, choices)

    work = flags.out.parent / f".{flags.out.name}.parts"
    parts = split_parts(plan, choices, work, flags.files_per_part)
    if any(part.is_finished for part in parts):
        print(f"{sum(part.is_finished for part in parts)} of {len(parts)} parts are there from an earlier run")
    with tqdm(total=sum(len(part.items) for part in parts), unit="file", desc=flags.source) as bar:
        make_parts(parts, work, flags.num_workers, bar.update)

    summary = summarize(parts, plan, choices)
    for bad in summary["rejected"]:
        print(f"rejected: {bad['why']}", file=sys.stderr)
    if summary["rejected"] and not flags.skip_bad:
        raise InputError(
            f"{len(summary['rejected'])} files or clouds are bad; mend them, or leave them out by --skip_bad"
        )
    joined = join_parts(parts, plan.names)
    card = render_card(plan, summary, joined, flags)
    save_set(flags.out, work, joined, card, summary)
    if flags.push_to_hub:
        push_set(flags.push_to_hub, DatasetDict.load_from_disk(str(flags.out)), card)
    shutil.rmtree(work)

    for split, found in summary["splits"].items():
        print(f"{split}: {found['clouds']} clouds, points least, median, most {found['points']}")
        print("  " + ", ".join(f"{name} {count}" for name, count in found["classes"].items()))
    if plan.ignored:
        print(
            "ignored: " + ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in plan.ignored.items())
        )
    print(f"saved {flags.out}, {len(summary['rejected'])} left out")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, ImportError, OSError) as error:
        print(f"prepare_data.py: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)  # finished parts are kept
