"""The page in a real browser."""

import shutil

import numpy as np
import pytest
import tifffile

from tests.serve.running import start, stop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.chromium,
    pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no Chromium"),
]

NAME = "a <i>slide & more.tif"
SIZE = (4000, 6000)


@pytest.fixture(scope="module")
def address(run, folder, tmp_path_factory):
    """A service of a folder with a pyramid of 6,000 x 4,000 px, and a small image."""
    root = tmp_path_factory.mktemp("slides")
    y, x = np.arange(SIZE[0])[:, None], np.arange(SIZE[1])
    pixels = np.empty((*SIZE, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = (y // 16).astype(np.uint8), (x // 24).astype(np.uint8)
    pixels[..., 2] = 200 * ((y // 64 % 2) ^ (x // 64 % 2)).astype(np.uint8)
    with tifffile.TiffWriter(root / NAME) as writer:
        for i in range(5):
            level = np.ascontiguousarray(pixels[:: 2**i, :: 2**i])
            writer.write(level, tile=(256, 256), compression="jpeg", subfiletype=int(i > 0))
    shutil.copy(folder / "b.png", root / "b.png")
    process, found = start(run, "--images", root)
    yield found
    stop(process)


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield made
    made.quit()


def wait(browser, condition):
    """Wait until JavaScript gives something true; returns it."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda browser: browser.execute_script(f"return {condition}"))


def answered(browser, name, looks):
    wait(browser, f"state.name === {name!r} && state.answer?.locations === {looks}")
    wait(browser, f"document.querySelectorAll('.spot').length === {looks}")
    wait(browser, "viewer.world.getItemAt(0)?.getFullyLoaded()")


@pytest.fixture
def page(browser, address):
    browser.get(f"{address}/#path={NAME.replace('&', '%26')}")
    browser.refresh()  # an address that differs after # only is not loaded again
    answered(browser, NAME, 3)
    yield browser
    bad = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not bad  # a script or style that the policy of the page forbids would be here


def levels(page):
    """Levels of the tiles that were loaded."""
    names = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    return {int(name.split("/v1/tile/")[1].split("/")[0]) for name in names if "/v1/tile/" in name}


def test_a_slide_is_opened_and_zoomed_to_full_resolution(page):
    assert "6,000 × 4,000 px" in page.find_element("id", "name").text
    assert max(levels(page)) < 12
    page.find_element("css selector", "[data-zoom=native]").click()
    wait(page, "document.getElementById('scale').textContent === '100 %'")
    wait(page, "viewer.world.getItemAt(0).getFullyLoaded()")
    assert max(levels(page)) == 13  # 2 ** 13 is the first power that reaches 6,000
    pixel = page.execute_script("""
        const item = viewer.world.getItemAt(0), centre = viewer.viewport.getCenter();
        return [item.viewportToImageCoordinates(centre).y, item.viewportToImageCoordinates(centre).x]""")
    assert 0 < pixel[0] < SIZE[0] and 0 < pixel[1] < SIZE[1]


def test_a_box_and_a_key_choose_a_look_and_tell_what_it_added(page):
    spot = page.find_element("css selector", ".spot[data-look='3']")  # the last lies above the others
    spot.click()
    card = wait(page, "document.querySelector('.look.chosen')")
    assert card.get_attribute("data-look") == "3"
    wait(page, "document.querySelector('.look.chosen img').naturalWidth === 32")  # as the model saw it
    told = page.execute_script("return state.answer.glimpses[3].contribution")
    assert f"{abs(told):.3f}" in card.text and "with probability" in card.text
    body = page.find_element("tag name", "body")
    body.send_keys("\ue012")  # left
    assert wait(page, "document.querySelector('.look.chosen').dataset.look === '2'")
    body.send_keys("\ue00c")  # escape
    assert wait(page, "!document.querySelector('.chosen')")


def test_sliders_classify_anew(page):
    page.find_element("id", "level2").send_keys("\ue012")
    answered(page, NAME, 2)
    assert "locations=2" in page.current_url
    cards = page.find_elements("css selector", ".look")
    assert len(cards) == 3
    page.find_element("id", "sure").send_keys("\ue011")  # the first value, 50 %
    wait(page, "document.querySelector('#sure').previousSibling.textContent.includes('50 %')")
    wait(page, "!document.querySelector('aside').classList.contains('busy')")


def test_another_image_is_chosen_by_the_list_and_by_keys(page):
    items = page.find_elements("css selector", "#list li")
    assert [item.text for item in items] == [NAME, "b.png"]  # names are text
    items[1].click()
    answered(page, "b.png", 3)
    page.find_element("tag name", "body").send_keys("\ue013")  # up
    answered(page, NAME, 3)
    page.find_element("id", "search").send_keys("b.")
    wait(page, "document.querySelectorAll('#list li').length === 1")


def test_a_file_of_the_computer_is_classified(page, folder):
    page.find_element("id", "upload").send_keys(str(folder / "a.png"))
    wait(page, "state.file && state.answer?.path === 'a.png' && document.querySelectorAll('.spot').length === 3")
    wait(page, "[...document.querySelectorAll('.look img')].every((image) => image.naturalWidth)")


def test_dark_and_narrow(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.execute_script(f"return {ground}")
    page.find_element("id", "theme").click()
    assert page.execute_script(f"return {ground}") != before
    page.execute_script("localStorage.clear()")
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 860, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        assert wait(page, "innerWidth === 400 && document.documentElement.scrollWidth <= 400")
        page.find_element("id", "drawer").click()
        wait(page, "document.querySelector('#list li').getBoundingClientRect().left >= 0")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
