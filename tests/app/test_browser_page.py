"""The static page of app/browser in Chromium: its readers, and its vectors beside those of `encode`."""

import base64
import http.server
import importlib.util
import json
import os
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
import trimesh
from app_server import ROOT

from browser import errors_of, needs_chromium, open_browser
from modeling_act import ACTPointCloudProcessor, ACTStudent
from modeling_act.errors import InputError
from modeling_act.hub.load_model import load_model
from modeling_act.inference import processor_of
from small_models import small_student_config

pytest.importorskip("onnx", reason="export needs the extra `export`")
pytest.importorskip("onnxscript", reason="export needs the extra `export`")
onnxruntime = pytest.importorskip("onnxruntime", reason="export needs the extra `export`")

SAMPLES = sorted((ROOT / "app" / "samples").glob("*.ply"))
_spec = importlib.util.spec_from_file_location("build_browser_page", ROOT / "app" / "browser" / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """onnxruntime-web's files, from npm's registry or cache."""
    folder = tmp_path_factory.mktemp("runtime") / "onnxruntime"
    try:
        build.fetch_runtime(folder)
    except InputError as error:
        pytest.skip(f"needs onnxruntime-web: {error}")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A built folder, without onnxruntime-web."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "fetch_runtime", lambda path: None)
        build.main(["--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def address(runtime, site):
    (site / "onnxruntime").symlink_to(runtime)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser_window(address):
    with open_browser() as driver:
        yield driver


@pytest.fixture
def driver(browser_window, address):
    """The page without shapes."""
    open_page(browser_window, address)
    return browser_window


@pytest.fixture(scope="module")
def student():
    return load_model("act-tiny", "ACTStudent")


def text_of(driver, name: str) -> str:
    return driver.find_element("id", name).text


def wait_for(driver, script: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not driver.execute_script(f"return {script}"):
        assert time.monotonic() < end, f"no {script}; there is {text_of(driver, 'status')} {text_of(driver, 'errors')}"
        time.sleep(0.05)


def open_page(driver, address: str) -> None:
    driver.get(address)
    wait_for(driver, "document.getElementById('status').textContent.includes('is ready')")


def drop(driver, paths: list, num_shapes: int) -> None:
    """Drag files and folders onto the page, as a user does, until it lists `num_shapes`."""
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 150, "data": data})
    wait_for(driver, f"document.getElementById('status').textContent.startsWith('{num_shapes} shape')")


def downloaded(driver, folder) -> dict:
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    driver.find_element("id", "download").click()
    path, end = folder / "vectors.json", time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, "nothing was downloaded"
        time.sleep(0.05)
    found = json.loads(path.read_text())
    path.unlink()
    return found


def write_meshes(folder) -> None:
    """Samples in every format, and polygons of several sizes."""
    for path in SAMPLES[::2]:
        mesh, name = trimesh.load(path, process=False), path.stem
        mesh.export(folder / f"{name}-binary.ply", encoding="binary")
        mesh.export(folder / f"{name}-text.ply", encoding="ascii")
        mesh.export(folder / f"{name}-binary.stl", file_type="stl")
        mesh.export(folder / f"{name}-text.stl", file_type="stl_ascii")
        mesh.export(folder / f"{name}.obj")
        mesh.export(folder / f"{name}.off")
    corners = "".join(f"v {x} {y} {z}\n" for x in (0, 2) for y in (0, 1) for z in (0, 3))
    faces = ("1 2 4 3", "5 7 8 6", "1 5 6 2", "3 4 8 7", "1 3 7 5", "2 6 8 4")
    (folder / "quads.obj").write_text("# six sides\n" + corners + "".join(f"f {face}\n" for face in faces))
    roof = "0 0 0\n2 0 0\n2 2 0\n1 3 0\n0 2 0\n1 1 4\n"
    (folder / "polygons.off").write_text(f"OFF\n6 4 0\n{roof}3 0 1 5\n4 0 1 2 3 255 0 0\n4 4 0 5 2\n3 2 3 5\n")
    header = "ply\nformat ascii 1.0\nelement vertex 6\nproperty float x\nproperty float y\nproperty float z\n"
    header += "element face 4\nproperty list uchar int vertex_indices\nend_header\n"
    (folder / "polygons.ply").write_text(header + roof + "3 0 1 5\n5 0 1 2 3 4\n4 4 0 5 2\n3 2 3 5\n")


def write_clouds(folder) -> None:
    """Clouds in text and binary, and a mesh of two solids."""
    generator = np.random.default_rng(0)
    for name, count in (("exactly.xyz", 512), ("fewer.txt", 100), ("more.csv", 3000), ("far.pts", 700)):
        points = generator.normal(size=(count, 3)) * (1, 2, 5) + (1e5 if name == "far.pts" else 0)
        header = {"more.csv": "x,y,z", "far.pts": str(count)}.get(name, "")
        delimiter = "," if name == "more.csv" else " "
        np.savetxt(folder / name, points, fmt="%.7g", delimiter=delimiter, header=header, comments="")
    with_colors = np.concatenate([generator.normal(size=(600, 3)), generator.integers(0, 256, (600, 3))], axis=1)
    np.savetxt(folder / "colors.xyz", with_colors, fmt="%g")
    trimesh.PointCloud(generator.normal(size=(900, 3))).export(folder / "cloud.ply")
    header = "ply\nformat binary_big_endian 1.0\nelement vertex 600\n"
    header += "property double x\nproperty double y\nproperty double z\nend_header\n"
    (folder / "big_endian.ply").write_bytes(header.encode() + generator.normal(size=(600, 3)).astype(">f8").tobytes())
    solids = [trimesh.creation.box((1, 2, 3)), trimesh.creation.icosphere(1).apply_translation((3, 0, 0))]
    (folder / "solids.stl").write_text(
        "\n".join(
            trimesh.exchange.stl.export_stl_ascii(solid).replace("solid", f"solid part{9 - place}", 1)
            for place, solid in enumerate(solids)
        )
    )
    (folder / "cloud.obj").write_text("".join("v {} {} {}\n".format(*row) for row in generator.normal(size=(800, 3))))


@needs_chromium
def test_vectors_are_those_of_encode_in_every_format(driver, student, tmp_path):
    folder = tmp_path / "shapes"
    folder.mkdir()
    write_meshes(folder)
    write_clouds(folder)
    (folder / ".DS_Store").write_bytes(b"\0")
    paths = sorted(path for path in folder.iterdir() if path.name != ".DS_Store")
    drop(driver, [folder], len(paths))
    assert text_of(driver, "errors") == ""
    found = downloaded(driver, tmp_path)
    assert (found["model"], found["num_points"], found["up_axis"]) == ("act-tiny", 512, "y")
    vectors = {row["name"]: torch.tensor(row["vector"]) for row in found["vectors"]}
    assert sorted(vectors) == [f"shapes/{path.name}" for path in paths]
    expected = student.encode([str(path) for path in paths], show_progress=False)
    for path, vector in zip(paths, expected, strict=True):
        torch.testing.assert_close(
            vectors[f"shapes/{path.name}"], vector, rtol=0, atol=1e-4, msg=lambda text, path=path: path.name + text
        )
    # The first shape is chosen, and the cards show the others, the most similar first.
    similarity = student.similarity(expected[0], expected[1:])
    cosines = [float(text.rpartition(" ")[2]) for text in texts(driver, "#nearest figcaption span")]
    torch.testing.assert_close(torch.tensor(cosines), similarity.sort(descending=True).values, rtol=0, atol=1e-3)
    assert errors_of(driver) == []


def texts(driver, selector: str) -> list[str]:
    return driver.execute_script(f"return [...document.querySelectorAll('{selector}')].map((e) => e.textContent)")


@needs_chromium
@pytest.mark.slow
def test_readers_agree_with_trimesh(driver, tmp_path):
    write_meshes(tmp_path)
    script = """const [name, text, done] = arguments;
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        import("./readers.js").then(({ readFile }) => readFile(name, bytes.buffer))
            .then(({ points, triangles }) => done([[...points], [...triangles]]), (error) => done(error.message));"""
    for path in sorted(tmp_path.iterdir()):
        content = base64.b64encode(path.read_bytes()).decode()
        points, triangles = driver.execute_async_script(script, path.name, content)
        mesh = trimesh.load(path, process=False)
        np.testing.assert_allclose(np.reshape(points, (-1, 3)), mesh.vertices, rtol=1e-6, err_msg=path.name)
        np.testing.assert_array_equal(np.reshape(triangles, (-1, 3)), mesh.faces, err_msg=path.name)


@needs_chromium
def test_damaged_files_are_named_in_one_line(driver, tmp_path):
    good, broken = tmp_path / "good", tmp_path / "broken"
    good.mkdir()
    broken.mkdir()
    write_meshes(good)
    whole = {name: (good / name).read_bytes() for name in os.listdir(good)}
    cases = {
        "binary.stl": (
            whole["mug-binary.stl"][:-7],
            "is truncated, or no STL file: expected 84 + 50 bytes",
        ),
        "text.stl": (whole["mug-text.stl"][:-40], "is truncated, or no STL file"),
        "binary.ply": (whole["mug-binary.ply"][:-3], "is truncated: announces 540 elements face, got 539"),
        "text.ply": (whole["polygons.ply"][:-9], "is truncated: announces 4 elements face, got 3"),
        "no_header.ply": (b"ply\nnothing", "has no header from ply to end_header"),
        "short.off": (whole["polygons.off"][:-9], "is truncated: announces 6 vertices and 4 faces, got 9 lines"),
        "no_off.off": (b"hello", "does not begin with OFF"),
        "face.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n", "holds a face that refers to no vertex: there are 3"),
        "word.obj": (b"v 0 0 zero\n", "'zero' is no number"),
        "flat.obj": (b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "holds a mesh without area"),
        "columns.xyz": (b"0 0 0\n1 2\n", "expected 3 columns (x y z) or 6 in every row, got 2 in '1 2'"),
        "nan.xyz": (b"0 0 0\n1 2 nan\n", "holds coordinates that are not finite, or beyond 1e15, at point 1"),
        "count.pts": (b"3\n0 0 0\n1 2 3\n", "announces 3 points, got 2"),
        "utf16.xyz": ("0 0 0\n".encode("utf-16"), "is text in UTF-16; save it as UTF-8"),
        "empty.ply": (b"", "is empty"),
        "<img src=x onerror=alert(1)>.ply": (b"", "is empty"),
        "paper.pdf": (b"%PDF", "expected files that end in .stl, .obj, .ply"),
    }
    drop(driver, [SAMPLES[0]], 1)
    for name, (data, line) in cases.items():
        path = broken / name
        path.write_bytes(data)
        driver.execute_script("document.getElementById('errors').replaceChildren()")
        driver.find_element("id", "files").send_keys(str(path))
        wait_for(driver, "document.querySelectorAll('#errors p').length === 1")
        shown = text_of(driver, "errors")
        assert shown.startswith(f"{name}: {line}") and "\n" not in shown
    assert text_of(driver, "status").startswith("1 shape,") and driver.find_elements("css selector", "img") == []
    drop(driver, [broken], 1)
    wait_for(driver, "document.querySelectorAll('#errors p').length === 6")
    assert text_of(driver, "errors").endswith("and 12 more files")
    driver.find_element("id", "clear").click()
    wait_for(driver, "document.getElementById('status').textContent === 'No shapes.'")
    assert not driver.find_element("id", "shapes").is_displayed() and text_of(driver, "errors") == ""
    assert errors_of(driver) == []


@needs_chromium
def test_keys_up_axis_and_no_foreign_address(driver, student, tmp_path):
    from selenium.webdriver import Keys

    driver.find_element("id", "load-samples").send_keys(Keys.ENTER)
    wait_for(driver, "document.getElementById('status').textContent.startsWith('8 shapes')")
    assert text_of(driver, "heading") == "Most like airplane.ply"
    first = texts(driver, "#nearest b")[0]
    card = driver.find_element("css selector", "#nearest canvas")
    assert card.get_attribute("role") == "button"
    card.send_keys(Keys.ENTER)
    assert text_of(driver, "heading") == f"Most like {first}"
    assert driver.switch_to.active_element == driver.find_element("css selector", "#chosen canvas")
    assert "embedded in" in text_of(driver, "timing")
    driver.find_element("id", "up-axis").send_keys("z")
    expected = student.encode([str(path) for path in SAMPLES], up_axis="z", show_progress=False)
    end = time.monotonic() + 20
    while not torch.allclose(vectors := torch.tensor(rows_of(downloaded(driver, tmp_path))), expected, atol=1e-4):
        assert time.monotonic() < end, (vectors - expected).abs().max()
    addresses = """return performance.getEntriesByType("resource").map((entry) => entry.name)
        .filter((name) => !name.startsWith(location.origin))"""
    assert driver.execute_script(addresses) == []
    upload = "fetch('https://example.org/', { method: 'POST', body: 'points' }).then(() => done(1), () => done(0))"
    assert driver.execute_async_script(f"const done = arguments[0]; {upload}") == 0
    assert any("Content Security Policy" in line for line in errors_of(driver))


def rows_of(found: dict) -> list[list[float]]:
    return [row["vector"] for row in found["vectors"]]


@needs_chromium
@pytest.mark.slow
def test_a_phone_sees_it_all(address):
    with open_browser(390, 844, phone=True) as driver:
        open_page(driver, address)
        assert not driver.find_element("id", "choose-folder").is_displayed()
        driver.find_element("id", "load-samples").click()
        wait_for(driver, "document.querySelectorAll('#nearest canvas').length === 7")
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
        beside = "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > 391).length"
        assert driver.execute_script(f"return {beside}") == 0 and errors_of(driver) == []


def test_built_model_gives_the_vectors_of_encode(site, student):
    session = onnxruntime.InferenceSession(site / "model.onnx")
    points = processor_of(student)([str(path) for path in SAMPLES])["points"]
    embedding = torch.from_numpy(session.run(["embedding"], {"points": points.numpy()})[0])
    vectors = torch.nn.functional.normalize(embedding, dim=1)
    expected = student.encode([str(path) for path in SAMPLES], samples=1, show_progress=False)
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)
    settings = json.loads((site / "settings.json").read_text())
    assert settings["num_points"] == 512 and settings["sample_files"] == [path.name for path in SAMPLES]


def test_build_refuses_what_it_cannot_use(tmp_path, monkeypatch):
    ACTStudent(small_student_config()).save_pretrained(tmp_path / "model")
    ACTPointCloudProcessor(256, normalize=False).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match="the page takes random points, scaled to the unit sphere"):
        build.main(["--model", str(tmp_path / "model"), "--out", str(tmp_path / "site")])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="error: npm is needed to download onnxruntime-web"):
        build.main(["--out", str(tmp_path / "site")])
    npm = tmp_path / "npm"
    for command, line in (
        ("echo 'npm error code E404' >&2; exit 1", "npm cannot download onnxruntime-web@.*: npm error code E404"),
        ("""echo '[{"integrity": "sha512-another", "filename": "x"}]'""", "has the checksum sha512-another, expected"),
    ):
        npm.write_text(f"#!/bin/sh\n{command}\n")
        npm.chmod(0o755)
        with pytest.raises(InputError, match=line):
            build.fetch_runtime(tmp_path / "onnxruntime")
