"""Make a model of pretrained/: what an image Transformer sees of generated shapes, learned by a small student.

python training/pretrained.py act-tiny act-small --work outputs     the teacher from the Hub or PyPI, then a recipe
...                                                                 continues after any interruption

The student's vectors are whitened on shapes that it did not learn from, and its matrices saved in half precision.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from act_training.prepare.dinov2_small import save_dinov2_small
from act_training.run.script import run_script
from act_training.synthetic.broad_shapes import generate_shapes

from modeling_act import ACTPointCloudProcessor, ACTStudent
from modeling_act.hub.publishing import make_card, without_local_paths

ROOT = Path(__file__).resolve().parents[1]
SCORES = ROOT / "benchmarks" / "results" / "shipped.jsonl"
WHITENED_ON = 4000
SAMPLES = {"act-tiny": 4, "act-small": 4}  # selections of points that `encode` averages
TASKS = {"nearest": "1-NN", "probe": "linear probe", "retrieval": "retrieval mAP", "5_way": "5-way 5-shot"}
DAMAGES = [
    "256 points",
    "turned about the vertical",
    "noise of 2 % of the radius",
    "seen from one side, half hidden",
]  # of the card
USAGE = """from modeling_act import ACTStudent

student = ACTStudent.from_pretrained("{name}").eval()
vectors = student.encode(["chair.stl", "table.obj"])  # files, arrays (points, 3), trimesh meshes; y up
print(student.similarity(vectors, vectors))"""
TEXT = """A point-cloud Transformer of {parameters:.1f} million parameters for vectors of 3D shapes: search,
duplicates, clustering, classification with few labels. It learned by masked distillation (ACT, stage 2) what
DINOv2-small sees in pictures of 12,000 generated shapes; no real shape, label or text was used. It takes {points}
points of a cloud, {samples} times for one vector (`samples=1` is {samples} times as fast), and expects the y axis up
(`up_axis="z"` turns others); vectors have {width} numbers.

A thin detail that {points} points miss is not seen, sizes are not compared (clouds are scaled into the unit sphere),
and colors are not used. The scores are of clouds that stand upright."""
MEASURED = """on test splits of real shapes, of which training saw none (`benchmarks/shipped.py`, {processor}; the
whitening's power was chosen on their train splits): 1-NN by cosine of `encode`'s vectors, among those of train; the
others on these vectors, standardized"""
NOTICE = """Weights: Apache-2.0.
They learned from shapes that this project generates (broad_shapes) and from features of DINOv2-small
(Meta AI, Apache-2.0, https://github.com/facebookresearch/dinov2). No other data was used.
"""


def pretrain(name: str, work: Path) -> Path:
    """Run the recipe, or what is left of it; return the folder of the finished student."""
    teacher, student = work / "dinov2-small", work / name
    if not (student / "metrics.json").exists():
        save_dinov2_small(teacher)
        recipe = ROOT / "training" / "recipes" / f"distill_{name.replace('-', '_')}.yaml"
        command = [sys.executable, ROOT / "training" / "distill.py", "--config", recipe, "--teacher", teacher]
        resume = ["--resume_from_checkpoint", "latest"] if (student / "checkpoints").exists() else []
        subprocess.run([*command, "--output_dir", student, *resume], check=True)
    return student


def ship(source: Path, folder: Path, name: str) -> None:
    """Save the whitened encoder of a pretrained student, with processor, card, recipe, metrics and notice."""
    student, processor = ACTStudent.from_pretrained(source).eval(), ACTPointCloudProcessor.from_pretrained(source)
    processor.samples, processor.few_points = SAMPLES[name], "between"
    student.fit_whitening(generate_shapes(WHITENED_ON, seed=1)["points"], processor=processor)
    state = {key: value.half() if value.ndim > 1 else value for key, value in student.state_dict().items()}
    student.save_pretrained(folder, state_dict=state)
    processor.save_pretrained(folder)
    for module in folder.glob("*.py"):  # publishing adds them
        module.unlink()
    recipe = without_local_paths(yaml.safe_load((source / "recipe.yaml").read_text()))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (folder / "metrics.json").write_text((source / "metrics.json").read_text())
    (folder / "NOTICE").write_text(NOTICE)
    (folder / "README.md").write_text(write_card(student, processor, name))


def write_card(student: ACTStudent, processor: ACTPointCloudProcessor, name: str) -> str:
    """Write the card, with the scores that benchmarks/pretraining.py has left."""
    text = TEXT.format(
        parameters=student.num_parameters() / 1e6,
        points=processor.num_points,
        samples=processor.samples,
        width=student.config.pooled_dim,
    )
    machine, *records = map(json.loads, SCORES.read_text().splitlines()) if SCORES.exists() else [{"processor": "-"}]
    scores = {
        (record["row"], record["set"]): {"nearest": record["accuracies"]["whole"]} | record for record in records
    }
    metrics = {
        f"{of}, {title}{note}": scores[row, of][task]
        for of in dict.fromkeys(record["set"] for record in records)
        for task, title in TASKS.items()
        for row, note in ((name, ""), (f"{name}, untrained", ", untrained network"))
    }
    for damage in DAMAGES:
        own = [record["accuracies"][damage] for record in records if record["row"] == name]
        metrics |= {f"1-NN, mean of the sets, {damage}": sum(own) / len(own)} if own else {}
    measured = MEASURED.format(processor=machine["processor"])
    return make_card(name, text, USAGE.format(name=name), metrics, measured, license="apache-2.0")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=SAMPLES, metavar="NAME", help=" or ".join(SAMPLES))
    parser.add_argument("--work", type=Path, default=ROOT / "outputs", help="folder of teacher, student and features")
    options = parser.parse_args(arguments)
    for name in options.names:
        torch.manual_seed(0)
        ship(pretrain(name, options.work), ROOT / "pretrained" / name, name)
        print(ROOT / "pretrained" / name)


if __name__ == "__main__":
    run_script(main)
