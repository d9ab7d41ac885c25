"""Pictures of clouds, confusion matrices and features, checked pixel by pixel."""

import matplotlib
import numpy as np
import pytest
from act_training.report.pictures import RIGHT, WRONG, save_confusion_matrix, save_feature_map
from act_training.report.run_folder import PANEL_SIZE, TITLE_HEIGHT, curve_svg, save_cloud_panels
from matplotlib import pyplot
from matplotlib.image import imread

from modeling_act.errors import InputError
from modeling_act.viewer.page import label_colors


def share_of(path, color):
    """The share of a picture's pixels that have about this color."""
    return (np.abs(imread(path)[..., :3] - np.asarray(color)[:3]) < 0.02).all(-1).mean()


def test_what_is_right_and_what_is_wrong_have_colors(tmp_path):
    right, wrong, half = np.diag([7, 5, 9]), np.roll(np.diag([7, 5, 9]), 1, axis=1), np.array([[3, 1], [0, 0]])
    for name, confusion in (("right", right), ("wrong", wrong), ("half", half)):
        save_confusion_matrix(tmp_path / name, confusion, list("abc")[: len(confusion)])
    assert share_of(tmp_path / "right", RIGHT(1.0)) > 0.1 and share_of(tmp_path / "right", WRONG(1.0)) == 0
    assert share_of(tmp_path / "wrong", WRONG(1.0)) > 0.1 and share_of(tmp_path / "wrong", RIGHT(1.0)) == 0
    assert share_of(tmp_path / "half", RIGHT(0.75)) > 0.05  # of four rows three are right,
    assert share_of(tmp_path / "half", WRONG(0.5)) > 0.05  # and a quarter wrong shows as much as a half right


@pytest.mark.parametrize("count", [2, 15, 40])
def test_matrices_stay_readable_and_small(tmp_path, count):
    names = [f"$class_{label}$ with a name that goes on and on" for label in range(count)]
    confusion = np.random.default_rng(0).poisson(np.eye(count) * 30 + 0.2)
    save_confusion_matrix(tmp_path / "a.png", confusion, names, "title")
    height, width, _ = imread(tmp_path / "a.png").shape
    assert count * 26 < width < 1600 and count * 26 < height < 1600
    assert (tmp_path / "a.png").stat().st_size < 600_000


def test_each_class_of_features_has_its_color(tmp_path):
    random, labels = np.random.default_rng(0), np.arange(80) % 4
    features = random.normal(size=(80, 6)) + 10 * np.eye(6)[labels]
    features[7] = np.nan  # of a model that diverged; left out
    save_feature_map(tmp_path / "a.png", features, labels, ["a", "b", "$c", "d", "absent"])
    again = tmp_path / "again.png"
    save_feature_map(again, features, labels, ["a", "b", "$c", "d", "absent"])
    assert again.read_bytes() == (tmp_path / "a.png").read_bytes()
    colors = 0.8 * label_colors(5) + 0.2  # drawn over white
    shares = [share_of(tmp_path / "a.png", color) for color in colors]
    assert all(share > 2e-4 for share in shares[:4]) and shares[4] == 0


@pytest.mark.parametrize("rows", [2, 5, 12])
def test_few_rows_are_mapped_too(tmp_path, rows):
    features = np.random.default_rng(0).normal(size=(rows, 6)).astype(np.float32)
    save_feature_map(tmp_path / "a.png", features, np.arange(rows) % 2, ["a", "b"])
    height, width, _ = imread(tmp_path / "a.png").shape
    assert width > (1300 if rows > 10 else 700) and height > 650  # t-SNE beside the components, where it can be had


# Clouds --------------------------------------------------------------------------------------------------------------


def gray(path):
    """A picture's brightness (height, width), 0 to 255."""
    return (imread(path)[..., :3].mean(-1) * 255).round()


def make_cloud():
    random = np.random.default_rng(0)
    return {name: random.uniform(-1, 1, (64, 3)).astype(np.float32) for name in ("input", "visible", "reconstruction")}


def test_picture_has_a_panel_for_each_cloud_and_key(tmp_path):
    partial = {"input": make_cloud()["input"], "reconstruction": np.full((8, 3), np.nan)}
    save_cloud_panels(tmp_path / "a.png", [make_cloud(), partial, {}], title="after $\\step 10")
    pixels, header = gray(tmp_path / "a.png"), 2 * TITLE_HEIGHT
    assert pixels.shape == (3 * PANEL_SIZE + header, 3 * PANEL_SIZE)
    cells = pixels[header:].reshape(3, PANEL_SIZE, 3, PANEL_SIZE).transpose(0, 2, 1, 3)
    assert ((cells < 200).sum((2, 3)) > 100).tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert all((pixels[:header, i * PANEL_SIZE : (i + 1) * PANEL_SIZE] < 128).any() for i in range(3))
    assert (cells[:, :, [0, -1]] == 255).all() and (cells[..., [0, -1]] == 255).all()  # nothing is cut off
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_cube_fits_into_its_panel(tmp_path):
    edge = np.linspace(-1, 1, 20)
    cube = np.stack(np.meshgrid(edge, edge, edge), axis=-1).reshape(-1, 3)
    save_cloud_panels(tmp_path / "a.png", [{"cube": cube}])
    pixels = gray(tmp_path / "a.png")[TITLE_HEIGHT:]
    assert all((border == 255).all() for border in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]))
    assert np.ptp(np.nonzero(pixels < 250), axis=1).min() > 220


def test_y_points_up(tmp_path):
    pole = np.stack([np.zeros(200), np.linspace(-1, 1, 200), np.zeros(200)], axis=1)
    save_cloud_panels(tmp_path / "a.png", [{"pole": pole}])
    pixels = imread(tmp_path / "a.png")[TITLE_HEIGHT:, :, :3]
    rows, columns = np.nonzero(pixels.min(axis=-1) < 0.6)
    assert np.ptp(rows) > 150 and np.ptp(columns) < 15
    red, _, blue = pixels[rows[0] + 4, columns[0]]
    assert red > blue  # the colors run from blue, low, to yellow, high


def test_pictures_refuse_no_clouds(tmp_path):
    with pytest.raises(InputError, match="at least one cloud"):
        save_cloud_panels(tmp_path / "a.png", [])


def test_pictures_leave_the_state_of_matplotlib_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    before, figures = matplotlib.rcParams.copy(), pyplot.get_fignums()
    save_cloud_panels(tmp_path / "a.png", [make_cloud()])
    curve_svg(np.arange(50), np.random.default_rng(0).random(50), (0, 50))
    assert matplotlib.rcParams == before and pyplot.get_fignums() == figures
