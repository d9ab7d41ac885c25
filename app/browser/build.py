"""Write a folder for any static file host: a page that embeds meshes and point clouds in the browser.

    python app/browser/build.py --out site
    python -m http.server --directory site --bind 127.0.0.1     # then open http://127.0.0.1:8000

It needs the extra `export`, and npm to download onnxruntime-web, of which the folder holds the WebAssembly build.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from modeling_act.errors import InputError
from modeling_act.export.export_act import describe, export_onnx
from modeling_act.hub.load_model import load_model
from modeling_act.inference import processor_of

HERE = Path(__file__).resolve().parent
PAGE = ("index.html", "page.css", "page.js", "readers.js", "sampling.js")
VIEWER = HERE.parents[1] / "modeling_act" / "viewer"
# A published package never changes; npm's checksum of it is checked all the same.
RUNTIME = "onnxruntime-web@1.30.0"
CHECKSUM = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def build(model_name: str, out: Path) -> None:
    """Export the model and put all that the page loads into the folder `out`."""
    model = load_model(model_name, "ACTStudent")
    processor = processor_of(model)
    about = describe(model, processor)
    if (about["point_sampling"], about["normalize"]) != ("random", True):
        raise InputError(f"{model_name}: the page takes random points, scaled to the unit sphere, and no others")
    out.mkdir(parents=True, exist_ok=True)
    fetch_runtime(out / "onnxruntime")
    export_onnx(model, out / "model.onnx", processor)
    for path in [*(HERE / name for name in PAGE), VIEWER / "viewer.js", VIEWER / "viewer.css"]:
        shutil.copy(path, out)
    samples = shutil.copytree(HERE.parent / "samples", out / "samples", dirs_exist_ok=True)
    about |= {"model": Path(model_name).name, "sample_files": sorted(path.name for path in samples.iterdir())}
    (out / "settings.json").write_text(json.dumps(about, indent=1) + "\n")


def fetch_runtime(folder: Path) -> None:
    """Copy onnxruntime-web's files into a folder, from npm's registry or cache, with the licences that it lacks."""
    import onnxruntime  # the Python package of the same project carries them

    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        command = ["npm", "pack", RUNTIME, "--json", "--prefer-offline", "--fetch-retries=1"]
        try:
            process = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise InputError("npm is needed to download onnxruntime-web, and is not installed") from error
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
            raise InputError(f"npm cannot download {RUNTIME}: {lines[0]}")
        (package,) = json.loads(process.stdout)
        if package["integrity"] != CHECKSUM:
            raise InputError(f"{RUNTIME} has the checksum {package['integrity']}, expected {CHECKSUM}")
        with tarfile.open(Path(work) / package["filename"]) as archive:
            for name in RUNTIME_FILES:
                (folder / name).write_bytes(archive.extractfile(f"package/dist/{name}").read())
    for name in ("LICENSE", "ThirdPartyNotices.txt"):
        shutil.copy(Path(onnxruntime.__file__).parent / name, folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--model", default="act-tiny", help="student to embed with: a folder, a Hub id, or act-tiny")
    options = parser.parse_args(arguments)
    try:
        build(options.model, options.out)
    except InputError as error:
        sys.exit(f"build.py: error: {error}")
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
