"""From files on disk to vectors: clouds/s, and the time of each stage, compared with Point-MAE.

    python benchmarks/embed.py                # one thread, batches of 32, ViT-S size, random weights

Point files (.ply) and mesh files (.off) are read, sampled to 1,024 points, normalized, divided into 64 groups of 32
and encoded. Point-MAE is the encoder of the package torch-pointcloud at the same sizes, with the same code before it.
Its groups come from torch_cluster, because its own grouping needs pyg-lib, which is not on PyPI.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from measure import ResultFile, Timing, argument_parser, installed_version, interleave, output_path
from modeling_act import ACTStudent, ACTStudentConfig
from peers import cluster_group

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from act_training.data.batches import Sampling, pad_rows, sample_points  # noqa: E402

from modeling_act.processing_act import to_unit_sphere  # noqa: E402
from modeling_act.readers.cloud import read_cloud  # noqa: E402
from stored_clouds import write_off, write_ply  # noqa: E402

try:
    import torch_cluster  # noqa: F401
    from torch_pointcloud.models.point_mae import PointMAEClassification

    absent = None
except (ImportError, OSError) as error:
    absent = str(error).splitlines()[0]

SIZES = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "num_groups": 64, "group_size": 32}
TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_groups": 8, "group_size": 8}


def read(files: list[Path], num_points: int) -> list[np.ndarray]:
    return [read_cloud(file, num_points, seed=number).points for number, file in enumerate(files)]


def sample(clouds: list[np.ndarray], num_points: int) -> Tensor:
    lengths = np.array([len(cloud) for cloud in clouds])
    points = pad_rows(np.concatenate(clouds), lengths)
    keys = torch.stack([torch.zeros(len(clouds), dtype=torch.int64), torch.arange(len(clouds))], 1)
    batch = {"points": points, "lengths": torch.from_numpy(lengths), "keys": keys}
    return sample_points(batch, Sampling(num_points, normalize=False))["points"]


def ours(sizes: dict[str, int]) -> tuple[Callable, Callable]:
    """Return grouping, and encoding of groups, of this package."""
    model = ACTStudent(ACTStudentConfig(**sizes, intermediate_size=4 * sizes["hidden_size"])).eval()
    return model.group, lambda groups: model(groups=groups).pooler_output


def point_mae(sizes: dict[str, int]) -> tuple[Callable, Callable]:
    """Return both of torch-pointcloud: its `forward_features` without the first line, which groups."""
    model = PointMAEClassification(
        0, 0, embed_dim=sizes["hidden_size"], depth=sizes["num_hidden_layers"], num_heads=sizes["num_attention_heads"],
        num_groups=sizes["num_groups"], group_size=sizes["group_size"],
    ).eval()  # fmt: skip

    def encode(groups: tuple[Tensor, Tensor]) -> Tensor:
        centers, neighborhoods = groups
        tokens = torch.cat([model.cls_token.expand(len(centers), -1, -1), model.encoder(neighborhoods)], 1)
        positions = torch.cat([model.cls_pos.expand(len(centers), -1, -1), model.pos_embed(centers)], 1)
        return model.forward_head(model.norm_f(model.blocks(tokens, positions)))

    return lambda points: cluster_group(points, sizes["num_groups"], sizes["group_size"]), encode


def measure(form: str, files: list[Path], num_points: int, options, results: ResultFile) -> None:
    sizes = TINY if options.quick else SIZES
    torch.manual_seed(0)
    models = {"ours": ours(sizes)} | ({} if absent else {"torch-pointcloud": point_mae(sizes)})
    clouds = read(files, num_points)
    drawn = sample(clouds, num_points)
    points = to_unit_sphere(drawn)
    stages = {
        ("", "read"): lambda: read(files, num_points),
        ("", "sample"): lambda: sample(clouds, num_points),
        ("", "normalise"): lambda: to_unit_sphere(drawn),
    }
    for name, (group, encode) in models.items():
        groups = group(points)
        stages[name, "group"] = lambda group=group: group(points)
        stages[name, "encode"] = lambda encode=encode, groups=groups: encode(groups)
        stages[name, "whole"] = lambda group=group, encode=encode: encode(
            group(to_unit_sphere(sample(read(files, num_points), num_points)))
        )
    timings = interleave(stages, rounds=1 if options.quick else 7, shortest=0.0 if options.quick else 0.02)
    for name in models:
        own: dict[str, Timing] = {stage: timing for (owner, stage), timing in timings.items() if owner in ("", name)}
        whole = own.pop("whole")
        results.append({
            "form": form, "implementation": name, "version": installed_version(name), "threads": 1,
            "batch": len(files), "points": num_points, "clouds_per_second": len(files) / whole.median_cpu,
            "stage_seconds_cpu": {stage: timing.median_cpu for stage, timing in own.items()}, **whole.record(),
        })  # fmt: skip
        share = "  ".join(f"{stage} {timing.median_cpu / whole.median_cpu:.1%}" for stage, timing in own.items())
        print(f"{form:4} {name:17} {len(files) / whole.median_cpu:8.1f} clouds/s   {share}", flush=True)


@torch.inference_mode()
def main() -> None:
    options = argument_parser("embed", __doc__).parse_args()
    torch.set_num_threads(1)
    num_files, stored, num_points = (2, 128, 64) if options.quick else (32, 8192, 1024)
    results = ResultFile(output_path("embed", options), "embed")
    if absent:
        results.append({"peer": "torch-pointcloud", "version": None, "absent": absent})
    clouds = np.random.default_rng(0).standard_normal((num_files, stored, 3), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for form, write in (("ply", write_ply), ("off", write_off)):
            files = sorted(write(Path(folder) / form, clouds).iterdir())
            measure(form, files, num_points, options, results)
    print(f"results in {results.path}")


if __name__ == "__main__":
    main()
