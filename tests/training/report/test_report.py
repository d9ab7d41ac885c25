"""The report of a run: the content of the file, and in Chromium the clouds and the layout."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from act_training.report.run_folder import format_number, series_of, write_report

from browser import errors_of, needs_chromium, open_browser, painted_pixels
from modeling_act.errors import InputError

HOSTILE = "</script><b id=injected>\" & ' <!-- {{data}} {% x %} \u2028."


def make_cloud(seed=0):
    random = np.random.default_rng(seed)
    return {name: random.uniform(-1, 1, (64, 3)).astype(np.float32) for name in ("input", "visible", "reconstruction")}


def make_records():
    random = np.random.default_rng(0)
    records = [
        {"step": step, "epoch": step / 40, "train/loss": 1 / step + random.random(), "train/learning_rate": 1e-4}
        for step in range(1, 61)
    ]
    records[20]["train/loss"], records[21]["train/loss"] = math.nan, math.inf
    return records + [{"step": 60, "epoch": 1.5, "validation/codes_used": 71, "probe/accuracy": 0.5}]


class Page(HTMLParser):
    """Elements of a page as written, (tag, attributes) each, its visible text, and its JSON."""

    def __init__(self, path):
        super().__init__()
        self.source, self.elements, self.words = path.read_text(), [], []
        self.feed(self.source)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if data.strip() and attributes.get("type") == "application/json":
            self.clouds = json.loads(data, parse_constant=pytest.fail)
        elif data.strip() and tag not in ("style", "script"):
            self.words.append(data.strip())

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


# The page ------------------------------------------------------------------------------------------------------------


def test_everything_is_in_the_page_and_nothing_comes_from_elsewhere(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n and so on")
    tables = {"probe": [{"class": "chair", "accuracy": np.float32(0.5)}, {"rows": 3, "items": None}]}
    recipe = {"learning_rate": 5e-4, "widths": (64, 128), "output_dir": tmp_path}
    images = {"held out": tmp_path / "picture.png"}
    path = tmp_path / "new" / "a.html"
    write_report(path, "Run 7", {"codes": 71}, make_records(), [make_cloud()], tables, images, recipe)

    page = Page(path)
    source = re.sub(r"http://www.w3.org/(2000/svg|1999/xlink)", "", page.source)  # names, not addresses
    assert not re.search(r"https?:|//\w+\.|@import|url\((?!#)", source)
    links = [link for _, attributes in page.elements for name, link in attributes.items() if name in ("src", "href")]
    assert links == ["data:,", "data:image/png;base64,iVBORw0KGgogYW5kIHNvIG9u"]
    start = page.words.index("codes")
    assert page.words[start - 1 : start + 3] == ["Run 7", "codes", "71", "Curves"]
    start = page.words.index("probe", page.words.index("Point clouds"))
    assert page.words[start : start + 9] == ["probe", "class", "accuracy", "rows", "items", "chair", "0.5", "-", "-"]
    assert '"learning_rate": 0.0005' in page.text and f'"output_dir": "{tmp_path}"' in page.text
    assert f'"numpy": "{np.__version__}"' in page.text
    assert page.count("svg") == 4 and "1 (1 to 2)" not in page.text
    assert [panel["name"] for panel in page.clouds[0]] == ["input", "visible", "reconstruction"]


def test_a_curve_has_the_later_record_of_each_step_and_marks_what_is_not_finite(tmp_path):
    records = [{"step": 2, "a/loss": 3.0}, {"step": 1, "a/loss": 4}, {"step": 2, "a/loss": 2.0}, {"step": 3}]
    assert series_of(records) == {"a/loss": {1: 4.0, 2: 2.0}}
    write_report(tmp_path / "a.html", "", {}, records + [{"step": 3, "a/loss": math.nan}], [])
    page = Page(tmp_path / "a.html")
    assert "2 (2 to 4), 1 not finite" in page.text and "var(--bad)" in page.source and "var(--curve)" in page.source


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"), (1234567, "1,234,567"), (np.int64(7), "7"), (0.123456, "0.1235"), (np.float32(0.5), "0.5"),
        (12345.678, "12,346"), (1e-7, "1e-07"), (math.nan, "nan"), (-math.inf, "-inf"), (None, "-"), (True, "True"),
        ("0.5 +- 0.1", "0.5 +- 0.1"),
    ],
)  # fmt: skip
def test_numbers_are_readable(value, text):
    assert format_number(value) == text


def test_hostile_names_stay_text(tmp_path):
    records = [{HOSTILE: 1.0}]
    arguments = [{HOSTILE: HOSTILE}, records, [{HOSTILE: np.zeros((1, 3))}], {HOSTILE: [{HOSTILE: HOSTILE}]}]
    write_report(tmp_path / "hostile.html", HOSTILE, *arguments, recipe={HOSTILE: HOSTILE})
    arguments = [{"a": "a" * 20}, [{"a": 1.0}], [{"a": np.zeros((1, 3))}], {"a": [{"a": "a"}]}]
    write_report(tmp_path / "plain.html", "a", *arguments, recipe={"a": "a"})
    hostile, plain = Page(tmp_path / "hostile.html"), Page(tmp_path / "plain.html")
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert hostile.words.count(HOSTILE) == 7 and hostile.clouds[0][0]["name"] == HOSTILE


def test_clouds_keep_their_proportions(tmp_path):
    wide = {"input": np.array([[10, 0, 0], [30, 6, 0]]), "reconstruction": np.array([[26, 11, 0], [np.nan, 0, 0]])}
    write_report(tmp_path / "a.html", "", {}, [], [wide, {}, {"input": np.full((4, 3), np.nan)}])
    [[first, second]] = Page(tmp_path / "a.html").clouds  # clouds without finite points are left out
    assert first["center"] == second["center"] == [20, 5.5, 0] and first["radius"] == second["radius"]
    assert "caption" not in first and second["caption"] == "1 points, 1 not finite"


def test_wrong_input_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'input' .* \(3, 3\), got \(3, 64\)"):
        write_report(tmp_path / "a.html", "", {}, [], [{"input": np.zeros((3, 64))}])
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "a.html", "", {}, [], [], images={"a": tmp_path / "a.png"})
    assert list(tmp_path.iterdir()) == []


# In a browser --------------------------------------------------------------------------------------------------------


@needs_chromium
@pytest.mark.parametrize("phone", [False, True])
def test_page_in_a_browser(tmp_path, phone):
    from selenium.webdriver import ActionChains

    clouds = [make_cloud(), make_cloud(1), {}, {"input": np.zeros((1, 3))}]
    table = {"probe": [{"class": HOSTILE, "accuracy": 0.5}]}
    write_report(tmp_path / "a.html", HOSTILE, {HOSTILE: 71}, make_records(), clouds, table, recipe={HOSTILE: 1})
    with open_browser(390 if phone else 1200, 900, phone=phone) as driver:
        driver.get((tmp_path / "a.html").as_uri())
        assert driver.execute_script("return document.documentElement.scrollWidth") == (390 if phone else 1200)
        canvases = driver.find_elements("css selector", "canvas")
        before = [painted_pixels(driver, canvas) for canvas in canvases]
        assert len(before) == 7 and all(len(pixels) > 50 for pixels in before)
        ActionChains(driver).drag_and_drop_by_offset(canvases[0], 40, 0).perform()
        after = [painted_pixels(driver, canvas) for canvas in canvases]
        turned = [not np.array_equal(*pair) for pair in zip(before, after, strict=True)]
        assert turned == [True] * 3 + [False] * 4  # one cloud turns, with all of its panels
        charts = [chart.size for chart in driver.find_elements("css selector", "svg")]
        assert len(charts) == 4 and all(chart["width"] > 280 and chart["height"] > 120 for chart in charts)
        assert driver.find_elements("css selector", "#injected") == [] and errors_of(driver) == []


@pytest.mark.parametrize(
    "records",
    [
        [{"loss": math.nan}],
        [{"loss": 0, "step": 5}],
        [{"loss": -1e300}, {"loss": 1e300}],
        [{"loss": 1.0}, {"loss": 1 + 2**-52}],  # closer than any ticks
        [{"loss": 10.0**-step} for step in range(100)],  # logarithmic
    ],
)
def test_odd_curves_are_drawn(tmp_path, records):
    write_report(tmp_path / "a.html", "", {}, records, [])
    page = Page(tmp_path / "a.html")
    assert page.count("svg") == 1 and page.count("text") > 3
    numbers = re.findall(r'<path d="([^"]*)"', page.source)
    assert "nan" not in "".join(numbers) and "Nothing has been logged yet." not in page.text


@pytest.mark.parametrize("records", [[], [{}], [{"step": 3, "epoch": 1.0}]])
def test_a_report_without_a_log_says_so(tmp_path, records):
    write_report(tmp_path / "a.html", "", {}, records, [])
    page = Page(tmp_path / "a.html")
    assert "Nothing has been logged yet." in page.text and page.count("svg") == 0 and page.clouds == []
