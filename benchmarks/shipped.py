"""The shipped models on real shapes: nearest neighbors of whole and damaged clouds, probes, retrieval, and clouds/s.

    python benchmarks/shipped.py --data DATA [--students pretrained/act-tiny pretrained/act-small]

DATA holds labelled sets (points, labels, split) with y up, as for pretraining.py. Rows of train are the index, rows of
test ask it, as they are or damaged; vectors are those of `encode`. Beside each model stand its network without
training, hand-made shape statistics and, with `--teacher FOLDER`, what a view teacher says of whole clouds.
Accuracies are of the nearest neighbor by cosine; a linear probe, mean average precision of retrieval and few-shot
episodes are of standardized vectors. The cards of the models are written from the results.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import measure
import plots
from pretraining import score_features

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "training"))  # where act_training is

from act_training.data.batches import VALIDATION_EPOCH  # noqa: E402
from act_training.measure.frozen_features import shape_statistics  # noqa: E402
from act_training.measure.robustness import corrupt  # noqa: E402
from act_training.run.training_state import calibrate_batch_norm  # noqa: E402
from act_training.synthetic.broad_shapes import generate_shapes  # noqa: E402

from modeling_act import ACTPointCloudProcessor, ACTStudent, ACTViewTeacher  # noqa: E402
from modeling_act.processing_act import to_unit_sphere  # noqa: E402

SETS = ["everyday_objects", "ancient_objects", "kicad_parts", "ldraw_parts"]
DAMAGES = {  # name in the table: corruption and strength, or a number of points
    "whole": None,
    "256 points": 256,
    "512 points": 512,
    "turned about the vertical": ("rotation_up", 180.0),
    "turned by up to 30 degrees": ("rotation_any", 30.0),
    "turned freely": ("rotation_any", 180.0),
    "noise of 2 % of the radius": ("jitter", 0.02),
    "a hole, a quarter of the points": ("local_dropout", 0.25),
    "seen from one side, a quarter hidden": ("occlusion", 0.25),
    "seen from one side, half hidden": ("occlusion", 0.5),
}

OTHERS = ("probe", "retrieval", "5_way", "10_way")
OF_UNTRAINED = ("whole", "256 points", "turned about the vertical")
PLAIN = ("shape statistics", "its teacher")  # vectors that are not whitened but standardized by those of the index


def damaged(points: np.ndarray, damage: tuple[str, float] | int | None) -> np.ndarray:
    """Return clouds (clouds, points, 3) as a damage leaves them; the same for any model."""
    if damage is None:
        return points
    if isinstance(damage, int):
        return points[:, np.random.default_rng(0).permutation(points.shape[1])[:damage]]
    row_ids = torch.stack([torch.full((len(points),), VALIDATION_EPOCH), torch.arange(len(points))], dim=1)
    return corrupt(torch.from_numpy(points), row_ids, *damage, seed=0).numpy()


def encoder_of(student: ACTStudent, processor: ACTPointCloudProcessor) -> Callable[[np.ndarray], Tensor]:
    return lambda clouds: student.encode(list(clouds), processor=processor, show_progress=False)


def untrained(student: ACTStudent, processor: ACTPointCloudProcessor, clouds: np.ndarray) -> ACTStudent:
    """The network of a student with new weights; its batch statistics and whitening are those of the clouds."""
    torch.manual_seed(0)
    network = ACTStudent(student.config).eval()
    batches = processor(list(clouds[:1000]))["points"].split(50)
    calibrate_batch_norm(network, network, batches)
    network.fit_whitening(clouds, processor=processor, show_progress=False)
    return network


def teacher_encoder(folder: Path) -> Callable[[np.ndarray], Tensor]:
    teacher = ACTViewTeacher.from_pretrained(folder).eval()

    @torch.inference_mode()
    def encode(clouds: np.ndarray) -> Tensor:
        parts = to_unit_sphere(torch.from_numpy(clouds)).split(32)
        with torch.autocast("cpu", torch.bfloat16):
            return torch.cat([teacher(points=part).cloud_features.float() for part in parts])

    return encode


def hand_made(clouds: np.ndarray) -> Tensor:
    return torch.from_numpy(shape_statistics(to_unit_sphere(torch.from_numpy(clouds)).numpy()))


def score(encode: Callable[[np.ndarray], Tensor], path: Path, damages: dict, standardize: bool) -> dict:
    """Accuracies of the nearest train row, by damage of the test rows; the other scores of whole ones."""
    arrays = np.load(path)
    train, test = ((arrays["split"] == split) for split in ("train", "test"))
    points, labels = arrays["points"].astype(np.float32), arrays["labels"]
    known = encode(points[train])
    mean, deviation = (known.mean(0), known.std(0).clamp_min(1e-6)) if standardize else (0.0, 1.0)
    known, accuracies = (known - mean) / deviation, {}
    for name, damage in damages.items():
        asked = (encode(damaged(points[test], damage)) - mean) / deviation
        nearest = ACTStudent.similarity(asked, known).argmax(1).numpy()
        accuracies[name] = float((labels[train][nearest] == labels[test]).mean())
        if damage is None:
            scores = score_features(known.numpy(), asked.numpy(), labels[train], labels[test], 0, False, None)
    return {"accuracies": accuracies} | {name: scores[name] for name in OTHERS}


def clouds_per_second(encode: Callable, clouds: np.ndarray, quick: bool) -> float:
    timing = measure.interleave({"encode": lambda: encode(clouds)}, rounds=1 if quick else 7)["encode"]
    return len(clouds) / timing.median_cpu


def summarize(records: list[dict]) -> None:
    """Print the means over sets, a line for each damage and other score, and a column for each model."""
    rows = {}
    for record in records:
        others = {name: value for name, value in record.items() if name in OTHERS}
        for damage, accuracy in (record["accuracies"] | others).items():
            rows.setdefault(damage, {}).setdefault(record["row"], []).append(accuracy)
    names = list(dict.fromkeys(record["row"] for record in records))
    print("| mean over sets | " + " | ".join(names) + " |\n|---" + "|---" * len(names) + "|")
    for damage, of in rows.items():
        means = (f"{100 * np.mean(of[name]):.1f}" if name in of else "" for name in names)
        print(f"| {damage} | " + " | ".join(means) + " |")


def main() -> None:
    parser = measure.argument_parser("shipped", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, required=True)
    folders = sorted((ROOT / "pretrained").glob("act-*"))
    parser.add_argument("--students", nargs="+", type=Path, default=folders, help="folders of finished students")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--teacher", type=Path, help="folder of a view teacher to score on whole clouds, for an hour")
    options = parser.parse_args()
    torch.set_num_threads(1)
    damages = dict(list(DAMAGES.items())[:2]) if options.quick else DAMAGES
    results, records = measure.ResultFile(measure.output_path("shipped", options), "shipped"), []
    sample = np.load(options.data / f"{options.sets[0]}.npz")["points"][:64].astype(np.float32)
    unlabelled = generate_shapes(1000 if options.quick else 4000, seed=1)["points"]
    encoders = {}
    for folder in options.students:
        student = ACTStudent.from_pretrained(folder).eval()
        processor = ACTPointCloudProcessor.from_pretrained(folder)
        encoders[folder.name] = encoder_of(student, processor)
        encoders[f"{folder.name}, untrained"] = encoder_of(untrained(student, processor, unlabelled), processor)
    encoders["shape statistics"] = hand_made
    if options.teacher:
        encoders["its teacher"] = teacher_encoder(options.teacher)
    for name, encode in encoders.items():
        speed = clouds_per_second(encode, sample, options.quick)
        for of in options.sets:
            asked = {"whole": None} if name == "its teacher" else damages
            if name.endswith("untrained"):
                asked = {damage: damages[damage] for damage in OF_UNTRAINED if damage in damages}
            scores = score(encode, options.data / f"{of}.npz", asked, standardize=name in PLAIN)
            records.append({"row": name, "set": of, "clouds_per_second": speed} | scores)
            results.append(records[-1])
    summarize(records)
    print(json.dumps({record["row"]: round(record["clouds_per_second"]) for record in records}))
    if not options.quick:
        plots.plot_trade_off(records, ROOT / "docs" / "images")


if __name__ == "__main__":
    main()
