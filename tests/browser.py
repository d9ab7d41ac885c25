"""A real, headless Chromium for tests of pages."""

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from matplotlib.image import imread

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver")


@contextmanager
def open_browser(width: int = 1440, height: int = 900, phone: bool = False, webgl: bool = True) -> Iterator:
    """Open a selenium driver that resolves no host name: a page gets only its file or the loopback server.

    `phone` emulates a touch screen of twice the density; without `webgl` there is none, as in some browsers.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    rendering = "--enable-unsafe-swiftshader" if webgl else "--disable-3d-apis"
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-background-networking"]
    fixed = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"]
    for flag in (*fixed, rendering, *offline, f"--window-size={width},{height}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
    try:
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
        yield driver
    finally:
        driver.quit()


def errors_of(driver) -> list[str]:
    """Errors in the page's console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def painted_pixels(driver, canvas) -> np.ndarray:
    """Colors (pixels, 3) in [0, 1] of a canvas's opaque pixels, after its next frame."""
    address = driver.execute_async_script(
        """const [canvas, done] = arguments;
        requestAnimationFrame(() => requestAnimationFrame(() => done(canvas.toDataURL())));""",
        canvas,
    )
    pixels = imread(io.BytesIO(base64.b64decode(address.partition(",")[2]))).reshape(-1, 4)
    return pixels[pixels[:, 3] == 1, :3]
