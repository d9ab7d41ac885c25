"""The report of a run and its pictures: what is in the files, and in a browser, where there is one, what they do."""

import base64
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from act_training.report import html as report
from act_training.report.html import write_atomically, write_report

from modeling_act.errors import InputError

HOSTILE = "</script><b id=injected>\" & ' <!-- {{data}} \u2028"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-sync", "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
    "--virtual-time-budget=5000", "--dump-dom",
)  # fmt: skip


def make_cloud(seed=0):
    random = np.random.default_rng(seed)
    return {name: random.uniform(-1, 1, (64, 3)).astype(np.float32) for name in ("input", "visible", "reconstruction")}


def make_records():
    records = [
        {"step": step, "epoch": step / 40, "train/loss": 1 / step, "train/learning_rate": 1e-4}
        for step in range(1, 61)
    ]
    records[20]["train/loss"], records[21]["train/loss"] = math.nan, math.inf
    return records + [{"step": 60, "epoch": 1.5, "validation/codes_used": 71, "probe/accuracy": 0.5}]


class Page(HTMLParser):
    """The elements of a page as written, (tag, attributes) each, and the text of its JSON element."""

    def __init__(self, path):
        super().__init__()
        self.text, self.elements, self.json = path.read_text(), [], ""
        self.feed(self.text)
        self.data = json.loads(self.json, parse_constant=pytest.fail)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][1].get("type") == "application/json":
            self.json += data


# The page ------------------------------------------------------------------------------------------------------------


def test_everything_is_in_the_page_and_nothing_comes_from_elsewhere(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n and so on")
    tables = {"probe": [{"class": "chair", "accuracy": np.float32(0.5)}]}
    recipe = {"learning_rate": 5e-4, "widths": (64, 128), "output_dir": tmp_path}
    images = {"held out": tmp_path / "picture.png"}
    records = make_records()
    write_report(tmp_path / "new" / "a.html", "Run 7", {"codes": 71}, records, [make_cloud()], tables, images, recipe)

    page = Page(tmp_path / "new" / "a.html")
    assert not re.search(r"https?:|//\w+\.|@import|url\(", page.text)
    links = [link for _, attributes in page.elements for name, link in attributes.items() if name in ("src", "href")]
    assert links == ["data:,"]
    assert (page.data["title"], page.data["summary"]) == ("Run 7", {"codes": 71})
    assert page.data["tables"] == {"probe": [{"class": "chair", "accuracy": 0.5}]}
    assert page.data["images"]["held out"].startswith("data:image/png;base64,iVBORw0K")
    assert page.data["recipe"] == {"learning_rate": 5e-4, "widths": [64, 128], "output_dir": str(tmp_path)}
    assert page.data["versions"]["numpy"] == np.__version__
    read = page.data["records"]
    assert (read[20]["train/loss"], read[21]["train/loss"]) == ("NaN", "Infinity")
    read[20]["train/loss"] = records[20]["train/loss"] = None
    read[21]["train/loss"] = float(read[21]["train/loss"])
    assert read == records


def test_numbers_of_any_library_become_plain_numbers(tmp_path):
    values = [np.float32(0.5), np.int64(3), np.bool_(True), np.array(2.0), np.float64(-math.inf), np.float16(math.nan)]
    write_report(tmp_path / "a.html", "", {}, [{"step": 1, "train/loss": value} for value in values], [])
    read = [record["train/loss"] for record in Page(tmp_path / "a.html").data["records"]]
    assert read == [0.5, 3, True, 2.0, "-Infinity", "NaN"]


def test_hostile_names_stay_text(tmp_path):
    arguments = [{HOSTILE: HOSTILE}, [{HOSTILE: 1.0}], [{HOSTILE: np.zeros((1, 3))}], {HOSTILE: [{HOSTILE: HOSTILE}]}]
    write_report(tmp_path / "hostile.html", HOSTILE, *arguments, recipe={HOSTILE: HOSTILE})
    write_report(tmp_path / "plain.html", "", {}, [], [])
    hostile, plain = Page(tmp_path / "hostile.html"), Page(tmp_path / "plain.html")
    assert hostile.elements == plain.elements
    data = hostile.data
    assert data["title"] == HOSTILE and data["summary"] == {HOSTILE: HOSTILE} and data["records"] == [{HOSTILE: 1.0}]
    assert data["tables"] == {HOSTILE: [{HOSTILE: HOSTILE}]} and data["recipe"] == {HOSTILE: HOSTILE}


def test_clouds_keep_their_proportions(tmp_path):
    wide = {"input": np.array([[10, 0, 0], [30, 6, 0]]), "reconstruction": np.array([[26, 11, 0], [np.nan, 0, 0]])}
    write_report(tmp_path / "a.html", "", {}, [], [wide])
    [[first, second]] = Page(tmp_path / "a.html").data["clouds"]
    unit = 32767 / math.hypot(10, 5.5)  # the center is (20, 5.5, 0), and (10, 0, 0) lies farthest from it
    assert decode(first["points"]) == [
        [round(-10 * unit), round(-5.5 * unit), 0],
        [round(10 * unit), round(0.5 * unit), 0],
    ]
    assert decode(second["points"]) == [[round(6 * unit), round(5.5 * unit), 0]]
    assert (first["name"], first["not_finite"], second["not_finite"]) == ("input", 0, 1)


def decode(text):
    return np.frombuffer(base64.b64decode(text), "<i2").reshape(-1, 3).tolist()


@pytest.mark.parametrize("cloud", [{}, {"input": np.zeros((0, 3))}, {"input": np.full((4, 3), np.nan)}])
def test_a_cloud_without_finite_points_is_no_error(tmp_path, cloud):
    write_report(tmp_path / "a.html", "", {}, [], [cloud])
    [panels] = Page(tmp_path / "a.html").data["clouds"]
    assert [panel["points"] for panel in panels] == [""] * len(cloud)


def test_wrong_input_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'input' .* \(points, 3\), got \(3, 64\)"):
        write_report(tmp_path / "a.html", "", {}, [], [{"input": np.zeros((3, 64))}])
    with pytest.raises(InputError, match="no such file"):
        write_report(tmp_path / "a.html", "", {}, [], [], images={"a": tmp_path / "a.png"})
    (tmp_path / "a.png").write_bytes(b"JFIF")
    with pytest.raises(InputError, match="one that begins b'JFIF'"):
        write_report(tmp_path / "a.html", "", {}, [], [], images={"a": tmp_path / "a.png"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_writing_replaces_the_whole_file_or_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.html"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]

    def fail(source, target):
        assert source.parent == tmp_path  # a rename across file systems is a copy
        raise OSError("disk full")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"newer")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


# In a browser --------------------------------------------------------------------------------------------------------

# Drags the first panel of the first cloud to the right, and writes into the page what it saw.
DRAG = """<script>setTimeout(() => {
  const canvases = [...document.querySelectorAll("canvas")];
  const pictures = () => canvases.map((canvas) => canvas.toDataURL());
  const before = pictures(), blank = document.createElement("canvas");
  [blank.width, blank.height] = [canvases[0].width, canvases[0].height];
  document.body.dataset.painted = before.filter((picture) => picture !== blank.toDataURL()).length;
  for (const [clientX, buttons] of [[10, 0], [90, 1]])
    canvases[0].dispatchEvent(new PointerEvent("pointermove", { clientX, clientY: 0, buttons }));
  document.body.dataset.turned = pictures().map((picture, i) => Number(picture !== before[i])).join("");
}, 300);</script>"""


def open_in_chromium(path):
    """The page as it stands after its scripts ran, without its data; fails if the console has a line."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={path.parent / 'profile'}", path.as_uri()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in process.stderr.splitlines() if "CONSOLE" in line] == []
    return re.sub(r"<script.*?</script>", "", process.stdout, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome on the PATH")
def test_page_in_a_browser(tmp_path):
    path = tmp_path / "a.html"
    table = {"probe": [{"class": HOSTILE, "accuracy": 0.5}]}
    write_report(
        path, HOSTILE, {HOSTILE: 71}, make_records(), [make_cloud(), make_cloud(1)], table, recipe={HOSTILE: 1}
    )
    path.write_text(path.read_text() + DRAG)
    page = open_in_chromium(path)
    assert re.findall(r'<svg [^>]*aria-label="([^"]*)"', page) == [
        "train/loss", "train/learning_rate", "validation/codes_used", "probe/accuracy",
    ]  # fmt: skip
    assert len(re.findall(r'class="curve "', page)) == 4 and len(re.findall(r'class="bad"', page)) == 2
    assert "0.01667 (0.01667 to 1), 2 not finite" in page
    assert len(re.findall("<canvas ", page)) == 6 and "<b id=" not in page
    assert 'data-painted="6"' in page and 'data-turned="111000"' in page, "one cloud turns, with all of its panels"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome on the PATH")
@pytest.mark.parametrize(
    ("records", "charts"),
    [
        ([], 0),
        ([{}], 0),
        ([{"loss": math.nan}], 1),
        ([{"loss": 0, "step": 5}], 1),
        ([{"loss": -1e300}, {"loss": 1e300}], 1),
        ([{"loss": 1.0}, {"loss": 1 + 2**-52}], 1),  # closer than any ticks
    ],
)
def test_page_with_little_or_odd_data_in_a_browser(tmp_path, records, charts):
    write_report(tmp_path / "a.html", "", {}, records, [{}, {"input": np.zeros((0, 3))}, {"input": np.zeros((1, 3))}])
    page = open_in_chromium(tmp_path / "a.html")
    assert len(re.findall("<svg ", page)) == charts and len(re.findall("<canvas ", page)) == 2
    assert ("Nothing has been logged yet." in page) == (charts == 0)
    assert "NaN" not in page and "Recipe and versions" in page


# Pictures ------------------------------------------------------------------------------------------------------------


def test_picture_has_a_panel_for_each_cloud_and_key(tmp_path):
    pictures, image = pytest.importorskip("act_training.report.pictures"), pytest.importorskip("PIL.Image")
    partial = {"input": make_cloud()["input"], "reconstruction": np.full((8, 3), np.nan)}
    pictures.save_cloud_panels(tmp_path / "a.png", [make_cloud(), partial, {}], title="after $\\step 10")
    pixels = np.asarray(image.open(tmp_path / "a.png").convert("L"))
    size, header = pictures.PANEL_SIZE, 2 * pictures.TITLE_HEIGHT
    assert pixels.shape == (3 * size + header, 3 * size)
    cells = pixels[header:].reshape(3, size, 3, size).transpose(0, 2, 1, 3)
    assert ((cells < 200).sum((2, 3)) > 100).tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert all((pixels[:header, i * size : (i + 1) * size] < 128).any() for i in range(3))
    assert (cells[:, :, [0, -1]] == 255).all() and (cells[..., [0, -1]] == 255).all()  # nothing is cut off
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_cube_fits_into_its_panel(tmp_path):
    pictures, image = pytest.importorskip("act_training.report.pictures"), pytest.importorskip("PIL.Image")
    edge = np.linspace(-1, 1, 20)
    cube = np.stack(np.meshgrid(edge, edge, edge), axis=-1).reshape(-1, 3)
    pictures.save_cloud_panels(tmp_path / "a.png", [{"cube": cube}])
    pixels = np.asarray(image.open(tmp_path / "a.png").convert("L"))[pictures.TITLE_HEIGHT :]
    assert all((border == 255).all() for border in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]))
    assert np.ptp(np.nonzero(pixels < 250), axis=1).min() > 220


def test_y_points_up(tmp_path):
    pictures, image = pytest.importorskip("act_training.report.pictures"), pytest.importorskip("PIL.Image")
    pole = np.stack([np.zeros(200), np.linspace(-1, 1, 200), np.zeros(200)], axis=1)
    pictures.save_cloud_panels(tmp_path / "a.png", [{"pole": pole}])
    pixels = np.asarray(image.open(tmp_path / "a.png").convert("RGB")).astype(int)[pictures.TITLE_HEIGHT :]
    rows, columns = np.nonzero(pixels.min(axis=-1) < 160)
    assert np.ptp(rows) > 150 and np.ptp(columns) < 15
    red, _, blue = pixels[rows[0] + 4, columns[0]]
    assert red > blue  # the colors run from blue, low, to orange, high


def test_pictures_refuse_no_clouds(tmp_path):
    pictures = pytest.importorskip("act_training.report.pictures")
    with pytest.raises(InputError, match="at least one cloud"):
        pictures.save_cloud_panels(tmp_path / "a.png", [])


def test_pictures_leave_the_state_of_matplotlib_alone(tmp_path, monkeypatch):
    pictures, matplotlib = pytest.importorskip("act_training.report.pictures"), pytest.importorskip("matplotlib")
    from matplotlib import pyplot

    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    before, figures = matplotlib.rcParams.copy(), pyplot.get_fignums()
    pictures.save_cloud_panels(tmp_path / "a.png", [make_cloud()])
    assert matplotlib.rcParams == before and pyplot.get_fignums() == figures
