"""Pictures of confusion matrices and features: read back from the files, pixel by pixel where that says something."""

import numpy as np
import pytest
from act_training.report.pictures import RIGHT, WRONG, save_confusion_matrix, save_feature_map
from matplotlib import colormaps
from matplotlib.image import imread


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
    colors = [0.8 * np.array(color) + 0.2 for color in colormaps["tab20"].colors[:5]]  # drawn over white
    shares = [share_of(tmp_path / "a.png", color) for color in colors]
    assert all(share > 2e-4 for share in shares[:4]) and shares[4] == 0


@pytest.mark.parametrize("rows", [1, 2, 5, 12])
def test_few_rows_are_mapped_too(tmp_path, rows):
    features = np.random.default_rng(0).normal(size=(rows, 6)).astype(np.float32)
    save_feature_map(tmp_path / "a.png", features, np.arange(rows) % 2, ["a", "b"])
    height, width, _ = imread(tmp_path / "a.png").shape
    assert width > (1300 if rows > 10 else 700) and height > 650  # t-SNE beside the components, where it can be had
