"""Exported models compared with the original: output differences, file sizes and latency of ONNX and torch.export.

    python benchmarks/export.py               # one thread, the paper's student, random weights: about 5 minutes

The graph includes the grouping. A torch.export program runs the same operations as the model in plain torch. The model
with the compiled kernels is what a user with a compiler has. Clouds have other sizes than those used for tracing.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from measure import ResultFile, argument_parser, interleave, output_path
from modeling_act import ACTStudent, ACTStudentConfig
from modeling_act.export.export_act import export_onnx, export_program
from modeling_act.point_ops import without_kernels

try:
    from point_kernels import is_available as has_kernels
except ImportError:

    def has_kernels(device_type: str) -> bool:
        return False


TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_groups": 8, "group_size": 8}
# groups: points of the clouds compared, points and batches of the clouds timed
SIZES = {64: ((777, 1024, 2048, 4096, 8192), 1024, (1, 32)), 512: ((1024, 2048, 4096, 8192, 10000), 8192, (1, 4))}
TINY_SIZES = {8: ((10, 64), 64, (1, 2))}
FORMS = {"torch.export": (export_program, "pt2"), "onnxruntime": (export_onnx, "onnx")}


def load_program(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    return torch.export.load(path).module()


def load_onnx(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    names = [output.name for output in session.get_outputs()]

    def run(points: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, map(torch.from_numpy, session.run(None, {"points": points.numpy()})), strict=True))

    return run


def seconds(call: Callable) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def difference(model: ACTStudent, run: Callable, num_points: int) -> float:
    """Return the largest output difference over two clouds."""
    points = torch.randn(2, num_points, 3, generator=torch.Generator().manual_seed(num_points))
    output = model(points)
    expected = {"embedding": output.pooler_output, "last_hidden_state": output.last_hidden_state}
    found = run(points)
    return max(float((found[name] - value).abs().max()) for name, value in expected.items())


def plain(model: ACTStudent) -> Callable[[Tensor], Tensor]:
    def run(points: Tensor) -> Tensor:
        with without_kernels():
            return model(points).pooler_output

    return run


def measure(num_groups: int, options, results: ResultFile) -> None:
    compared, timed, batches = (TINY_SIZES if options.quick else SIZES)[num_groups]
    torch.manual_seed(0)
    model = ACTStudent(ACTStudentConfig(**(TINY if options.quick else {"num_groups": num_groups}))).eval()
    forms = {"plain torch": plain(model)} | ({"kernels": model} if has_kernels("cpu") else {})
    with tempfile.TemporaryDirectory() as folder:
        for form, (export, suffix) in FORMS.items():
            path = Path(folder) / f"student.{suffix}"
            export_seconds = seconds(lambda export=export, path=path: export(model, path))
            load = load_program if suffix == "pt2" else load_onnx
            load_seconds = [seconds(lambda load=load, path=path: load(path)) for _ in range(3)]
            forms[form] = load(path)
            record = {
                "section": "files", "groups": num_groups, "form": form, "threads": 1,
                "export_seconds": export_seconds, "load_seconds": load_seconds, "megabytes": path.stat().st_size / 1e6,
                "differences": {points: difference(model, forms[form], points) for points in compared},
            }  # fmt: skip
            results.append(record)
            print(f"{num_groups:4} groups  {form:12} differences {record['differences']}", flush=True)
    for batch in batches:
        points = torch.randn(batch, timed, 3)
        calls = {form: lambda run=run, points=points: run(points) for form, run in forms.items()}
        timings = interleave(calls, rounds=1 if options.quick else 7)
        for form, timing in timings.items():
            record = {"section": "latency", "groups": num_groups, "form": form, "threads": 1, "batch": batch}
            results.append(record | {"points": timed, **timing.record()})
            print(f"{batch:4} x {timed}  {form:12} {1e3 * timing.median_cpu:8.1f} ms", flush=True)


@torch.no_grad()
def main() -> None:
    options = argument_parser("export", __doc__).parse_args()
    torch.set_num_threads(1)
    results = ResultFile(output_path("export", options), "export")
    for num_groups in TINY_SIZES if options.quick else SIZES:
        measure(num_groups, options, results)
    print(f"results in {results.path}")


if __name__ == "__main__":
    main()
