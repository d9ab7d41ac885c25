"""The page in Chromium, with small real models."""

import configparser
import shutil
import time

import numpy as np
import page
import pytest
from app_server import ROOT, served

from browser import errors_of, needs_chromium, open_browser


def wait_for(driver, script: str, seconds: float = 20):
    """Value of a script in the page, as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := driver.execute_script(f"return {script}")):
        assert time.monotonic() < end, f"no {script}; there is {driver.find_element('tag name', 'body').text}"
        time.sleep(0.1)
    return value


def text_of(selector: str) -> str:
    return f"(document.querySelector('{selector}')?.innerText ?? '').trim()"


def open_page(driver, address: str) -> None:
    driver.get(address)
    wait_for(driver, "document.querySelectorAll('#viewer canvas[data-drawn-by]').length === 1")


def picture(driver) -> str:
    return driver.execute_script("return document.querySelector('#viewer canvas').toDataURL()")


FOREIGN = """performance.getEntriesByType("resource").map((entry) => entry.name)
    .filter((name) => !name.startsWith(location.origin) && !name.startsWith("data:"))"""


@needs_chromium
def test_from_a_sample_to_a_broken_file(address, cloud_file, tmp_path):
    from selenium.webdriver import ActionChains

    with open_browser() as driver:
        open_page(driver, address)
        wait_for(driver, "document.querySelectorAll('#samples canvas').length === 8")
        wait_for(driver, "document.querySelectorAll('#hits canvas').length >= 5")
        wait_for(driver, "document.querySelectorAll('#rebuilt canvas').length === 3")
        assert "airplane.ply" in driver.execute_script(f"return {text_of('#viewer figcaption')}")
        assert driver.execute_script(f"return {text_of('#classes')}").count("<b>lamp</b>") == 1  # as text

        long = cloud_file.rename(tmp_path / f"{'a_long_name_' * 14}cube.xyz")
        driver.find_element("css selector", "#upload input[type=file]").send_keys(str(long))
        wait_for(driver, f"{text_of('#viewer figcaption')}.includes('cube.xyz')")
        name = driver.find_element("css selector", "#viewer figcaption b")
        assert name.size["height"] < 30 and name.get_attribute("title") == long.name
        assert "600 points" in driver.execute_script(f"return {text_of('#viewer figcaption')}")

        before = picture(driver)
        canvas = driver.find_element("css selector", "#viewer canvas")
        driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", canvas)
        ActionChains(driver).move_to_element(canvas).click().perform()
        wait_for(driver, "document.querySelector('#coloring input:checked').value === 'Similarity'")
        readout = wait_for(
            driver, f"document.querySelector('#viewer .act-scale') && {text_of('#viewer .act-readout')}"
        )
        assert readout.startswith("point ") and readout.endswith(" 1")  # itself
        assert picture(driver) != before

        for label in driver.find_elements("css selector", "#coloring label"):
            if label.text == "Parts":
                label.click()
        legend = wait_for(driver, text_of("#viewer .act-legend"))
        assert {name.partition("/")[0] for name in legend.split()} <= {"chair", "lamp", "mug"}

        broken = tmp_path / "<img src=x onerror=alert(1)>.ply"
        broken.write_bytes(b"ply\nnothing")
        driver.find_element("css selector", "#upload input[type=file]").send_keys(str(broken))
        line = wait_for(driver, text_of("#message"))
        assert ".ply:\n" in line and "onerror" in line and line.count("\n") == 1  # the name, and what is wrong
        wait_for(driver, f"!{text_of('#viewer')}")  # nothing of the shape before
        wait_for(driver, f"!{text_of('#hits')} && !{text_of('#rebuilt')} && !{text_of('#classes')}")
        assert driver.find_elements("css selector", "img[onerror]") == []

        driver.find_element("css selector", "#samples canvas").click()
        wait_for(driver, f"{text_of('#viewer figcaption')}.includes('airplane.ply')")
        wait_for(driver, f"!{text_of('#message')}")
        assert driver.execute_script(f"return {FOREIGN}") == [] and errors_of(driver) == []


@needs_chromium
def test_a_phone_sees_it_all_and_nothing_beside(address):
    with open_browser(390, 844, phone=True) as driver:
        open_page(driver, address)
        wait_for(driver, "document.querySelectorAll('#rebuilt canvas').length === 3")
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
        beside = """[...document.querySelectorAll("#viewer *, #upload *, #classes *, #hits *, #rebuilt *")]
            .filter((element) => element.getBoundingClientRect().right > innerWidth + 1).length"""
        assert driver.execute_script(f"return {beside}") == 0
        heights = "[...document.querySelectorAll('#head .models > span, #coloring label')].map((e) => e.offsetHeight)"
        assert max(driver.execute_script(f"return {heights}")) < 40
        size = driver.find_element("css selector", "#viewer canvas").rect
        assert size["width"] > 330 and size["height"] > 330

        driver.execute_script("document.querySelector('#viewer canvas').scrollIntoView({ block: 'center' })")
        pictures, offset = [picture(driver)], driver.execute_script("return scrollY")
        touch(driver, [[(100, 400)], [(140, 430)], [(190, 460)]])  # one finger turns
        pictures.append(picture(driver))
        touch(driver, [[(180, 400), (200, 420)], [(150, 380), (230, 440)], [(110, 350), (270, 480)]])  # two zoom
        pictures.append(picture(driver))
        assert len(set(pictures)) == 3 and driver.execute_script("return scrollY") == offset
        assert errors_of(driver) == []


def touch(driver, steps: list[list[tuple[int, int]]]) -> None:
    """Fingers down at the first step's places, on to the next ones', and up."""
    for number, places in enumerate(steps):
        points = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(places)]
        kind = "touchMove" if number else "touchStart"
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    time.sleep(0.3)


@pytest.mark.slow
@needs_chromium
def test_a_space_without_models_searches_with_the_one_that_comes_along(tmp_path):
    space = tmp_path / "space"  # put together as app/README.md says
    shutil.copytree(ROOT / "app", space)
    for folder in ("modeling_act", "pretrained"):
        shutil.copytree(ROOT / folder, space / folder)
    with served(tmp_path, {}, script=space / "app.py") as address, open_browser() as driver:
        open_page(driver, address)
        head = driver.execute_script(f"return {text_of('#head')}")
        assert "act-tiny" in head and "510 generated shapes" in head and "Not shown: classes, parts" in head
        wait_for(driver, f"{text_of('#hits')}.includes('airplane')")
        driver.find_element("css selector", "#hits canvas").click()
        wait_for(driver, f"{text_of('#viewer figcaption')}.startsWith('airplane ')")
        assert not driver.execute_script(f"return {text_of('#far')}")

        np.save(tmp_path / "line.npy", np.linspace((0, 0, 0), (1, 1, 1), 2000))
        driver.find_element("css selector", "#upload input[type=file]").send_keys(str(tmp_path / "line.npy"))
        assert "None of these is close" in wait_for(driver, text_of("#far"))
        for selector in ("#classes", "#rebuilt"):
            assert driver.find_elements("css selector", f"{selector} *") == []
        assert errors_of(driver) == []
    log = (tmp_path / "app.log").read_text()
    assert "public" not in log and f"The page is at {address}/" in log


def test_a_space_installs_what_the_package_needs():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = setup["options"]["install_requires"] + setup["options.extras_require"]["search"]
    listed = (ROOT / "app" / "requirements.txt").read_text().splitlines()
    assert {line for line in needed.splitlines() if line} == {line for line in listed if not line.startswith("#")}


def test_a_wrong_model_ends_the_start_with_one_line(monkeypatch, model_names):
    monkeypatch.setattr("sys.argv", ["app.py", "--classifier", model_names["student"]])
    with pytest.raises(SystemExit, match="app.py: error: .*holds ACTStudent, where .* is needed") as caught:
        page.main()
    assert "\n" not in str(caught.value)
