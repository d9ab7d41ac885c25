"""The page in a process of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["chair", "<b>lamp</b>", "mug"]


# Gradio itself downloads from public addresses only. Here every address is one, so that only the page's own refusal
# keeps it from a server on this machine.
EVERYTHING_IS_PUBLIC = """
import runpy, sys
import safehttpx
if __name__ == "__main__":
    safehttpx.is_public_ip = lambda address: True
    script = sys.argv.pop(1)
    sys.path.insert(0, script.rpartition("/")[0])
    runpy.run_path(script, run_name="__main__")
"""


@contextmanager
def served(folder: Path, names: dict[str, str], script: Path = ROOT / "app" / "app.py"):
    """Start the page in a process of its own and return its address; uploads go below `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "start.py").write_text(EVERYTHING_IS_PUBLIC)
    command = [sys.executable, str(folder / "start.py"), str(script), "--port", str(port)]
    command += [word for name, value in names.items() for word in (f"--{name}", value)]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder / "uploads"), "OMP_NUM_THREADS": "1"}
    log = folder / "app.log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=stream, stderr=stream)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{address}/config", timeout=5).read()
                break
            except urllib.error.URLError:
                time.sleep(0.25)
        else:
            raise AssertionError(f"the page does not answer: {log.read_text()}")
        yield address
        # Gradio logs the forged requests that it refused; our code may not have failed.
        ours = [f'File "{ROOT / folder}/' for folder in ("app", "modeling_act")]
        assert not any(place in log.read_text() for place in ours), log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=20)
