"""How far bf16 autocast moves each output of the paper-size models from fp32: `python benchmarks/precision.py`.

Random weights and clouds, groups cut once in fp32. Writes results/precision.json beside this file; the errors are
norms of the difference relative to the norm of the fp32 output.
"""

import json
import platform
from pathlib import Path

import torch
import transformers

from modeling_act import ACTStudent, ACTStudentConfig, ACTTeacher, ACTTeacherConfig

SEED, BATCH_SIZE, NUM_POINTS = 0, 2, 1024


@torch.no_grad()
def relative_errors(model, **inputs) -> dict[str, float]:
    model.eval()
    exact = model(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(**inputs)
    errors = {}
    for name, value in exact.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            errors[name] = ((rounded[name].float() - value).norm() / value.norm()).item()
    if "code_indices" in exact:
        errors["codes_changed"] = (rounded.code_indices != exact.code_indices).float().mean().item()
    return errors


def main() -> None:
    torch.manual_seed(SEED)
    teacher, student = ACTTeacher(ACTTeacherConfig()), ACTStudent(ACTStudentConfig())
    groups = teacher.group(torch.randn(BATCH_SIZE, NUM_POINTS, 3))
    results = {
        "teacher, soft codes": relative_errors(teacher, groups=groups, code_mode="soft"),
        "student": relative_errors(student, groups=groups),
        "seed": SEED,
        "clouds": BATCH_SIZE,
        "points": NUM_POINTS,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    path = Path(__file__).parent / "results" / "precision.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
