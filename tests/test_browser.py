"""The report in a real browser: tables sort, figures are there, nothing complains, nothing is fetched."""

import re
import shutil
from dataclasses import replace

import pytest
from studies import record, study

from cfsp.cli.report import report

pytestmark = pytest.mark.browser

webdriver = pytest.importorskip("selenium.webdriver")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECTIONS = "perplexity-1 zero-shot-1 widths importance latency-1 recovery".split()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report on a study with perplexities of one to four digits, and one that is no number."""
    folder = tmp_path_factory.mktemp("report")
    values = {"FLAP": float("nan"), "Taylor": 1234.5, "CFSP": 9.5}
    odd = [record(criterion, 0.5) for criterion in values]
    for one, value in zip(odd, values.values(), strict=True):
        one.metrics["pruned"]["perplexity/x"] = replace(one.metrics["pruned"]["perplexity/x"], value=value)
    for one in [*study(), *odd]:
        one.save(folder)
    report([folder / "records"], folder / "report.html", None, "Study")
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser(page):
    if not (BROWSER and DRIVER):
        pytest.skip("no chromium and chromedriver; make test-browser installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_window_size(1400, 1000)
    driver.get(page)
    yield driver
    driver.quit()


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def column(browser, name):
    """The heading of a column of all runs, and its cells as they stand."""
    table = find(browser, "#tiny-runs table")[0]
    headings = table.find_elements("css selector", "th")
    place = [heading.text.split()[0] for heading in headings].index(name)
    cells = browser.execute_script(
        "return [...arguments[0].tBodies[0].rows].map(row => row.cells[arguments[1]].textContent)",
        table,
        place,
    )
    return headings[place], cells


def show(browser, element):
    where = "{behavior: 'instant', block: 'center', inline: 'center'}"
    browser.execute_script(f"arguments[0].scrollIntoView({where})", element)


def click(browser, heading):
    show(browser, heading)
    heading.find_element("css selector", "button").click()


def test_every_section_has_a_figure_that_can_be_seen(browser):
    for name in SECTIONS:
        drawn = find(browser, f"#tiny-{name} figure svg")
        assert drawn, name
        for one in drawn:
            assert one.size["width"] > 300
            assert one.size["height"] > 100
        assert find(browser, f"#tiny-{name} figcaption")[0].text


def test_numbers_sort_as_numbers_and_what_is_none_stays_last(browser):
    heading, before = column(browser, "perplexity/x")
    assert "nan" in before
    for direction in ("ascending", "descending"):
        click(browser, heading)
        assert heading.get_attribute("aria-sort") == direction
        cells = column(browser, "perplexity/x")[1]
        assert sorted(cells) == sorted(before)
        assert cells[-1] == "nan"
        numbers = [float(cell.replace(",", "")) for cell in cells[:-1]]
        assert numbers == sorted(numbers, reverse=direction == "descending")


def test_cells_with_plus_minus_and_words_sort_too(browser):
    for name in ("parameters", "method", "seconds"):
        heading, _ = column(browser, name)
        click(browser, heading)
        cells = column(browser, name)[1]
        keys = [float(cell.replace(",", "")) if cell[0].isdigit() else cell for cell in cells]
        assert keys == sorted(keys)
        assert len(find(browser, "#tiny-runs th[aria-sort=ascending]")) == 1
    table = find(browser, "#tiny-perplexity-1 table")[0]
    heading = table.find_elements("css selector", "th")[2]
    click(browser, heading)
    values = [
        row.find_elements("css selector", "td")[2].text
        for row in table.find_elements("css selector", "tbody tr")
    ]
    assert any("±" in value for value in values)
    numbers = [float(value.split(" ±")[0].replace(",", "")) for value in values if value != "nan"]
    assert numbers == sorted(numbers)


def test_keyboard_sorts(browser):
    heading, _ = column(browser, "seed")
    heading.find_element("css selector", "button").send_keys("\ue007")
    assert heading.get_attribute("aria-sort") == "ascending"


def test_a_config_opens(browser):
    details = find(browser, "#tiny-runs details")[0]
    show(browser, details)
    details.find_element("css selector", "summary").click()
    assert '"sparsity"' in details.find_element("css selector", "pre").text


@pytest.mark.parametrize("width", [360, 420, 800, 1400])
def test_no_width_makes_the_page_scroll_sideways(browser, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    inner, whole = browser.execute_script(
        "return [document.documentElement.clientWidth, document.documentElement.scrollWidth]"
    )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert inner <= width
    assert whole <= inner


@pytest.mark.parametrize("width", [420, 1400])
def test_figures_fit_and_what_is_cut_says_that_it_scrolls(browser, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    hidden = (
        "return [...document.querySelectorAll('figure .wide')].filter(b => b.scrollWidth > b.clientWidth)"
    )
    assert browser.execute_script(hidden) == []
    boxes = browser.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => setTimeout(() => done("
        "[...document.querySelectorAll('section > .wide')].map(box => ["
        "box.scrollWidth > box.clientWidth + 1, "
        "getComputedStyle(box.querySelector('caption span'), '::after').content.includes('↔'), "
        "box.querySelectorAll('th').length])), 100))"
    )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert all(cut == said for cut, said, _ in boxes)
    if width == 1400:
        assert not any(cut for cut, _, columns in boxes if columns < 12)


def test_the_dark_is_dark_in_figures_too(browser):
    read = (
        "return ['body', 'section', '.plot svg text', '.plot svg #f0-patch_1 path, .plot svg path']"
        ".map(one => getComputedStyle(document.querySelector(one)))"
        ".map((style, place) => place < 2 ? style.backgroundColor : style.fill)"
    )
    shown = {}
    for mode in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": mode}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colours = [re.findall(r"\d+", one)[:3] for one in browser.execute_script(read)]
        shown[mode] = [sum(map(int, one)) for one in colours]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    body, card, text, paper = shown["light"]
    assert min(body, card, paper) > 600 > 400 > text
    body, card, text, paper = shown["dark"]
    assert max(body, card, paper) < 200 < 400 < text


def test_nothing_is_fetched_and_nothing_complains(browser, page):
    """Last, when all that could go wrong has had its chance."""
    messages = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert messages == []
    asked = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
        ".filter(name => !name.startsWith('data:'))"
    )
    assert asked == []
    assert browser.current_url.split("#")[0] == page
