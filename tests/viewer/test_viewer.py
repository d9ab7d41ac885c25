"""The viewer's page: its data, that it loads nothing else, and what Chromium draws."""

import base64
import json
import re

import numpy as np
import pytest

from browser import errors_of, needs_chromium, open_browser, painted_pixels
from modeling_act.errors import InputError
from modeling_act.viewer.page import MAX_POINTS, ViewerCloud, label_colors, pack_clouds, viewer_page

HOSTILE = (
    "</title></script><script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\">{{data}}"
)


def numbers(text: str, kind: str, width: int | None = None) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(text), kind)
    return values.reshape(-1, width) if width else values


def test_points_return_to_their_places():
    points = np.random.default_rng(0).normal(size=(500, 3)) * (1, 20, 3) + (1e4, -5, 7)
    (packed,) = pack_clouds([ViewerCloud(points, "a")])
    unpacked = numbers(packed["points"], "<i2", 3) / 32767 * packed["radius"] + packed["center"]
    assert np.abs(unpacked - points).max() <= packed["radius"] / 32767
    assert packed["drawn"] == packed["total"] == 500


def test_same_frame_keeps_relative_sizes():
    small, large = ViewerCloud(np.eye(3)), ViewerCloud(10 * np.eye(3))
    own = [numbers(packed["points"], "<i2") for packed in pack_clouds([small, large])]
    np.testing.assert_array_equal(*own)
    common = [packed["radius"] for packed in pack_clouds([small, large], same_frame=True)]
    assert common[0] == common[1]


def test_colors_values_and_labels_are_packed():
    colors = np.array([(0, 0, 0), (1, 0.5, 0), (1, 1, 1)])
    (packed,) = pack_clouds([ViewerCloud(np.eye(3), colors=colors)])
    assert numbers(packed["colors"], "u1", 3).tolist() == [[0, 0, 0], [255, 128, 0], [255, 255, 255]]
    (packed,) = pack_clouds([ViewerCloud(np.eye(3), values=np.array([-1.0, 0.5, 3.0]))])
    assert packed["scale"][:2] == [-1, 3] and numbers(packed["values"], "<f4").tolist() == [-1, 0.5, 3]
    clouds = [
        ViewerCloud(np.eye(3), labels=np.array(row), label_names={0: "a", 2: "c"}) for row in ([2, 0, 2], [1, 2, 1])
    ]
    first, second = pack_clouds(clouds)
    assert [name for name, _ in first["legend"]] == ["a", "c"]
    assert [name for name, _ in second["legend"]] == ["label 1", "c"]
    assert first["legend"][1][1] == second["legend"][1][1] != first["legend"][0][1]  # one color in all clouds
    assert numbers(first["labels"], "<u4").tolist() == [1, 0, 1]  # rows of the legend
    assert len(np.unique(label_colors(60).round(3), axis=0)) == 60


def test_a_large_cloud_is_thinned_and_says_so():
    points = np.random.default_rng(0).random((MAX_POINTS + 1000, 3), dtype=np.float32)
    (packed,) = pack_clouds([ViewerCloud(points, values=points[:, 0])])
    assert (packed["drawn"], packed["total"]) == (MAX_POINTS, MAX_POINTS + 1000)
    x = numbers(packed["points"], "<i2", 3)[:, 0] / 32767 * packed["radius"] + packed["center"][0]
    np.testing.assert_allclose(numbers(packed["values"], "<f4"), x, atol=1e-4)


@pytest.mark.parametrize(
    ("clouds", "message"),
    [
        ([], "there is no cloud to show"),
        ([ViewerCloud(np.zeros((3, 2)), "a")], "cloud 'a' must have finite points of shape (3, 3), got (3, 2)"),
        ([ViewerCloud(np.zeros((0, 3)))], "must have finite points of shape (0, 3), got (0, 3)"),
        ([ViewerCloud(np.full((2, 3), np.nan))], "must have finite points"),
        ([ViewerCloud(np.eye(3), values=np.zeros(2))], "must have finite values of shape (3,), got (2,)"),
        ([ViewerCloud(np.eye(3), values=np.full(3, np.inf))], "must have finite values"),
    ],
)
def test_wrong_clouds_are_named(clouds, message):
    with pytest.raises(InputError, match=re.escape(message)):
        viewer_page(clouds, "title")


def test_the_page_keeps_names_as_text_and_names_no_address():
    page = viewer_page([ViewerCloud(np.eye(3), HOSTILE, labels=np.arange(3), label_names={0: HOSTILE})], HOSTILE)
    assert page.count("<script") == page.count("</script") == 2 and "<img" not in page
    assert not re.search(r"(https?:)?//[a-z]+\.", page) and "url(" not in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert data["clouds"][0]["name"] == data["clouds"][0]["legend"][0][0] == HOSTILE


# In a browser --------------------------------------------------------------------------------------------------------


@needs_chromium
@pytest.mark.parametrize("webgl", [True, False])
def test_a_browser_draws_turns_and_picks(tmp_path, webgl):
    from selenium.webdriver import ActionChains, Keys

    rng = np.random.default_rng(0)
    shell = rng.normal(size=(3000, 3))
    shell /= np.linalg.norm(shell, axis=1, keepdims=True)
    points = np.concatenate([[(0, 0, 0)], shell[np.abs(shell[:, 1]) > 0.8]])  # two caps, and a point between them
    labels, names = np.arange(len(points)).clip(max=1), {0: "middle", 1: "cap"}
    page = tmp_path / "page.html"
    page.write_text(viewer_page([ViewerCloud(points, 3 * HOSTILE, labels=labels, label_names=names)], HOSTILE))
    with open_browser(800, 700, webgl=webgl) as driver:
        driver.get(page.as_uri())
        assert driver.title == HOSTILE
        name = driver.find_element("css selector", "figcaption b")
        assert name.get_attribute("title") == name.text == 3 * HOSTILE and name.size["height"] < 30  # one line
        canvas = driver.find_element("css selector", "canvas")
        pictures = [painted_pixels(driver, canvas)]
        assert canvas.get_attribute("data-drawn-by") == ("webgl" if webgl else "canvas") and len(pictures[0]) > 1000

        ActionChains(driver).move_to_element(canvas).click().perform()
        readout = driver.find_element("css selector", ".act-readout").text
        assert readout == "point 0 (0, 0, 0) middle"
        pictures.append(painted_pixels(driver, canvas))
        ActionChains(driver).drag_and_drop_by_offset(canvas, 80, 30).perform()
        pictures.append(painted_pixels(driver, canvas))
        assert driver.find_element("css selector", ".act-readout").text == readout  # a drag picks nothing
        canvas.send_keys(Keys.ARROW_LEFT)
        pictures.append(painted_pixels(driver, canvas))
        assert len({picture.tobytes() for picture in pictures}) == 4
        assert driver.find_elements("css selector", "img, h1 script") == [] and errors_of(driver) == []


@needs_chromium
@pytest.mark.parametrize("webgl", [True, False])
def test_pixels_have_the_colors_of_their_points(tmp_path, webgl):
    side = np.repeat([0, 1, 2], 500)
    points = np.random.default_rng(0).random((1500, 3)) + 2 * side[:, None]  # three cubes, apart from each other
    cases = [
        (ViewerCloud(points, labels=side, label_names={0: "a"}), [(78, 121, 220), (242, 142, 43), (76, 172, 96)]),
        (ViewerCloud(points, colors=np.eye(3)[side]), [(255, 0, 0), (0, 255, 0), (0, 0, 255)]),
        (ViewerCloud(points, values=side), [(58, 88, 216), (214, 84, 150), (250, 208, 94)]),
    ]
    page = tmp_path / "page.html"
    page.write_text(viewer_page([cloud for cloud, _ in cases], "title"))
    with open_browser(900, 600, webgl=webgl) as driver:
        driver.get(page.as_uri())
        canvases = driver.find_elements("css selector", "canvas")
        pictures = [painted_pixels(driver, canvas) for canvas in canvases]
    # Light and depth change the brightness of a color, not its hue.
    for pixels, (_, colors) in zip(pictures, cases, strict=True):
        assert len(pixels) > 1000 and np.linalg.norm(pixels, axis=1).min() > 0.5
        hues = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
        expected = colors / np.linalg.norm(colors, axis=1, keepdims=True)
        nearest = (hues @ expected.T).argmax(1)
        assert np.linalg.norm(hues - expected[nearest], axis=1).max() < 0.1
        assert (np.bincount(nearest, minlength=3) > 0.1 * len(pixels)).all()
