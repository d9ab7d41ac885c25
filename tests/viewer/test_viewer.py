"""The page that shows clouds: what it holds, that it holds nothing else, and what a browser makes of it."""

import base64
import json
import re

import numpy as np
import pytest

from browser import errors_of, needs_chromium, open_browser
from modeling_act.errors import InputError
from modeling_act.viewer.page import MOST_POINTS, ShownCloud, label_colors, pack_clouds, viewer_page

HOSTILE = (
    "</title></script><script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\">{{data}}"
)


def numbers(text: str, kind: str, width: int | None = None) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(text), kind)
    return values.reshape(-1, width) if width else values


def test_points_return_to_their_places():
    points = np.random.default_rng(0).normal(size=(500, 3)) * (1, 20, 3) + (1e4, -5, 7)
    (packed,) = pack_clouds([ShownCloud(points, "a")])
    shown = numbers(packed["points"], "<i2", 3) / 32767 * packed["radius"] + packed["center"]
    assert np.abs(shown - points).max() <= packed["radius"] / 32767
    assert packed["drawn"] == packed["total"] == 500


def test_same_frame_keeps_relative_sizes():
    small, large = ShownCloud(np.eye(3)), ShownCloud(10 * np.eye(3))
    own = [numbers(packed["points"], "<i2") for packed in pack_clouds([small, large])]
    np.testing.assert_array_equal(*own)
    common = [packed["radius"] for packed in pack_clouds([small, large], same_frame=True)]
    assert common[0] == common[1]


def test_colors_are_those_given():
    colors = np.array([(0, 0, 0), (1, 0.5, 0), (1, 1, 1)])
    (packed,) = pack_clouds([ShownCloud(np.eye(3), colors=colors)])
    assert numbers(packed["colors"], "u1", 3).tolist() == [[0, 0, 0], [255, 128, 0], [255, 255, 255]]


def test_a_label_has_one_color_in_all_clouds():
    names = ["seat", "leg", "back"]
    clouds = [ShownCloud(np.eye(3), labels=np.array(labels), label_names=names) for labels in ([2, 0, 2], [1, 2, 1])]
    first, second = pack_clouds(clouds)
    assert [(name, count) for name, _, count in first["legend"]] == [("seat", 1), ("back", 2)]
    assert [(name, count) for name, _, count in second["legend"]] == [("leg", 2), ("back", 1)]
    assert first["legend"][1][1] == second["legend"][1][1] != first["legend"][0][1]
    assert numbers(first["labels"], "<u4").tolist() == [1, 0, 1]  # places in the legend
    assert len(np.unique(label_colors(60).round(3), axis=0)) == 60


def test_values_become_a_scale():
    (packed,) = pack_clouds([ShownCloud(np.eye(3), values=np.array([-1.0, 0.5, 3.0]))])
    assert packed["scale"][:2] == [-1, 3] and numbers(packed["values"], "<f4").tolist() == [-1, 0.5, 3]


def test_a_large_cloud_is_thinned_and_says_so():
    points = np.random.default_rng(0).random((MOST_POINTS + 1000, 3), dtype=np.float32)
    (packed,) = pack_clouds([ShownCloud(points, values=points[:, 0])])
    assert (packed["drawn"], packed["total"]) == (MOST_POINTS, MOST_POINTS + 1000)
    shown = numbers(packed["points"], "<i2", 3)[:, 0] / 32767 * packed["radius"] + packed["center"][0]
    np.testing.assert_allclose(numbers(packed["values"], "<f4"), shown, atol=1e-4)


@pytest.mark.parametrize(
    ("cloud", "message"),
    [
        (ShownCloud(np.zeros((3, 2)), "a"), "cloud 'a' must have points of shape (n, 3), got (3, 2)"),
        (ShownCloud(np.zeros((0, 3))), "must have points of shape (n, 3), got (0, 3)"),
        (ShownCloud(np.full((2, 3), np.nan)), "must have finite points"),
        (ShownCloud(np.eye(3), values=np.zeros(2)), "must have values of shape (3,), got (2,)"),
        (ShownCloud(np.eye(3), values=np.full(3, np.inf)), "must have finite values"),
        (ShownCloud(np.eye(3), labels=np.zeros(3, int)), "has labels and no `label_names`"),
        (ShownCloud(np.eye(3), colors=np.eye(3), values=np.ones(3)), "one of colors, labels and values"),
    ],
)
def test_wrong_clouds_are_named(cloud, message):
    with pytest.raises(InputError, match=re.escape(message)):
        pack_clouds([cloud])


def test_no_cloud_is_an_error():
    with pytest.raises(InputError, match="no cloud"):
        viewer_page([], "empty")


def test_the_page_keeps_names_as_text_and_names_no_address():
    page = viewer_page([ShownCloud(np.eye(3), HOSTILE, labels=np.arange(3), label_names=[HOSTILE] * 3)], HOSTILE)
    assert page.count("<script") == page.count("</script") == 2 and "<img" not in page
    assert not re.search(r"(https?:)?//[a-z]+\.", page) and "url(" not in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert data["clouds"][0]["name"] == data["clouds"][0]["legend"][0][0] == HOSTILE


# In a browser --------------------------------------------------------------------------------------------------------

PICTURE = "return document.querySelector('canvas').toDataURL()"


@needs_chromium
@pytest.mark.parametrize("webgl", [True, False])
def test_a_browser_draws_turns_and_picks(tmp_path, webgl):
    from selenium.webdriver import ActionChains, Keys

    rng = np.random.default_rng(0)
    shell = rng.normal(size=(3000, 3))
    shell /= np.linalg.norm(shell, axis=1, keepdims=True)
    points = np.concatenate([[(0, 0, 0)], shell[np.abs(shell[:, 1]) > 0.8]])  # two caps, and a point between them
    labels = np.arange(len(points)).clip(max=1)
    page = tmp_path / "page.html"
    page.write_text(viewer_page([ShownCloud(points, HOSTILE, labels=labels, label_names=["middle", "cap"])], HOSTILE))
    with open_browser(800, 700, webgl=webgl) as driver:
        driver.get(page.as_uri())
        assert driver.title == HOSTILE and driver.find_element("css selector", "figcaption b").text == HOSTILE
        canvas = driver.find_element("css selector", "canvas")
        at_first = driver.execute_async_script(
            f"const done = arguments[0]; setTimeout(() => done((() => {{ {PICTURE} }})()), 300)"
        )
        assert canvas.get_attribute("data-drawn-by") == ("webgl" if webgl else "canvas")
        blank = "const c = document.createElement('canvas'), o = document.querySelector('canvas');"
        assert at_first != driver.execute_script(
            f"{blank} c.width = o.width; c.height = o.height; return c.toDataURL()"
        )

        ActionChains(driver).move_to_element(canvas).click().perform()
        readout = driver.find_element("css selector", ".act-readout").text
        assert readout == "point 0 (0, 0, 0) middle"
        ActionChains(driver).drag_and_drop_by_offset(canvas, 80, 30).pause(0.3).perform()
        turned = driver.execute_script(PICTURE)
        assert turned != at_first
        assert driver.find_element("css selector", ".act-readout").text == readout  # a drag picks nothing
        canvas.send_keys(Keys.ARROW_LEFT)
        ActionChains(driver).pause(0.3).perform()
        assert driver.execute_script(PICTURE) != turned
        assert driver.find_elements("css selector", "img, h1 script") == [] and errors_of(driver) == []
