"""Both pages as a real browser shows them: narrow and wide, light, dark and printed, by keys, with 500 scenes."""

import json
import os
import time
from itertools import cycle, islice

import pytest
from browsing import asked, axe, beyond, chromium, html_validate, look
from front_door import copied

from cloudjob.config.source import load
from cloudjob.files import read_json, read_jsonl, write_jsonl, write_text
from cloudjob.pages import review as review_page
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item
from cloudjob.stages import report

pytestmark = pytest.mark.slow
MANY = 500


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def many(finished, tmp_path_factory) -> RunFolder:
    """The finished run with its scenes many times over: real files and records, other names."""
    folder = RunFolder(copied(finished, tmp_path_factory.mktemp("many") / "run"))
    known = sorted(path.stem for path in (folder.records / "infer").glob("*.json"))
    scores, found = read_jsonl(folder.scores), {row["product"]: row for row in read_jsonl(folder.scenes)}
    names = {f"{old[:-6]}{number:06}": old for number, old in enumerate(islice(cycle(known), MANY - len(known)))}
    for new, old in names.items():
        os.symlink(folder.safe(old), folder.safe(new))
        os.link(folder.evaluation_picture(old), folder.evaluation_picture(new))
        for suffix in (".h5", ".tif"):
            folder.output(new, suffix).parent.mkdir(exist_ok=True)
            os.link(folder.output(old, suffix), folder.output(new, suffix))

    def make(item: Item) -> records.Made:
        return [folder.output(item.name, suffix) for suffix in (".h5", ".tif")], None

    records.work(folder, "infer", [Item("infer", name, {}, {}) for name in names], make)
    write_jsonl(folder.scenes, [*found.values(), *(found[old] | {"product": new} for new, old in names.items())])
    more = (row | {"product": new} for new, old in names.items() for row in scores if row["product"] == old)
    write_jsonl(folder.scores, [*scores, *more])
    return folder


def errors(driver) -> list:
    return [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"]


@pytest.mark.parametrize("name", ["report", "review"])
def test_a_page_is_sound_at_each_width_light_and_dark(driver, finished, name):
    page = finished / name / "index.html"
    assert html_validate(page) == []
    for wide, dark in ((375, True), (768, False), (1280, True), (375, False)):
        look(driver, page, width=wide, dark=dark)
        assert (beyond(driver), asked(driver), axe(driver), errors(driver)) == (0, [], [], [])


@pytest.mark.parametrize("name", ["report", "review"])
def test_a_page_prints_dark_on_white_without_what_is_pressed(driver, finished, name):
    look(driver, finished / name / "index.html", width=800, dark=True, medium="print")
    colours = "const {color, backgroundColor} = getComputedStyle(document.body); return [color, backgroundColor]"
    assert driver.execute_script(colours) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    buttons = driver.find_elements("css selector", "header button, #back, #on, .buttons button")
    assert buttons
    assert not any(button.is_displayed() for button in buttons)
    assert not any(key.is_displayed() for key in driver.find_elements("tag name", "kbd"))


def test_what_a_printed_page_needs_is_on_it(driver, finished):
    """The words of the table, the colours of a scale, and no pair on two sheets."""
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    look(driver, finished / "report" / "index.html", width=800, medium="print")
    assert driver.execute_script("return document.querySelector('#scores details li').checkVisibility()")
    look(driver, finished / "review" / "index.html", width=800, medium="print")
    assert driver.execute_script(style, ".scale", "printColorAdjust") == "exact"
    assert driver.execute_script(style, "main > section", "breakInside") == "avoid"
    sheet = 24.7 / 2.54 * 96  # pixels of CSS: A4, without margins of 2.5 cm
    assert max(row.rect["height"] for row in driver.find_elements("css selector", "main > section")) < sheet


def test_report_of_500_scenes_is_quick_and_small_and_each_scene_is_reached_by_keys(driver, many):
    from selenium.webdriver import ActionChains

    begun = time.monotonic()
    assert report.run(load(many.root / "config.yaml", [])[0], many).done == ["run"]
    assert time.monotonic() - begun < 60
    folder = many.report.parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 30e6
    look(driver, many.report, width=1280)

    def shown() -> list[str]:
        """The pictures that are seen, when they have come."""
        stack = driver.find_elements("css selector", "#stack img")
        end = time.monotonic() + 10
        while not all(image.get_property("complete") for image in stack):
            assert time.monotonic() < end
        assert all(image.get_property("naturalWidth") for image in stack)
        return [image.get_attribute("id") for image in stack if image.is_displayed()]

    def name() -> str:
        return driver.find_element("id", "said").text.partition(" ")[0]

    def press(key: str) -> None:
        ActionChains(driver).send_keys(key).perform()

    options = driver.execute_script("return [...document.querySelectorAll('#scene option')].map((each) => each.text)")
    assert len(set(options)) == MANY
    assert name() == options[0]
    assert shown() == ["cloudy", "restored", "outline"]
    press("m")
    assert shown() == ["cloudy", "restored"]
    press("j")
    assert name() == options[1]
    press("k")
    press("k")
    assert name() == options[-1]
    driver.find_elements("css selector", "#list button")[321].click()
    assert (name(), len(shown())) == (options[321], 2)
    clip = "return document.getElementById('restored').style.clipPath"
    before = driver.execute_script(clip)
    driver.find_element("id", "slide").send_keys("\ue014")  # the arrow to the right
    assert (before, driver.execute_script(clip)) == ("inset(0px 0px 0px 50%)", "inset(0px 0px 0px 51%)")
    driver.find_element("id", "find").send_keys(options[7])
    assert [row.text for row in driver.find_elements("css selector", "#list tbody button") if row.is_displayed()] == [
        options[7]
    ]
    assert (asked(driver), errors(driver)) == ([], [])


def test_pictures_of_few_scenes_are_in_the_page(finished):
    assert [path.name for path in (finished / "report").iterdir()] == ["index.html"]


def test_500_pairs_are_reviewed_by_keys_without_waiting(driver, finished, tmp_path):
    from selenium.webdriver import ActionChains

    folder = RunFolder(finished)
    rows = read_jsonl(folder.pairs)
    made = {
        row["pair"]: read_json(records.path(folder, "review", row["pair"]))["result"] for row in rows if row["shown"]
    }
    shown = islice(cycle(row for row in rows if row["shown"]), MANY)
    pairs = [row | {"pair": f"{row['pair']}-{n}", "version": f"{n}"} for n, row in enumerate(shown)]
    results = {row["pair"]: made[row["pair"].rpartition("-")[0]] for row in pairs}
    text = review_page.page("many", pairs, results, {}, command="")
    page = tmp_path / "index.html"
    os.symlink(folder.review_images, tmp_path / "images")
    for row in pairs:
        text = text.replace(f"images/{row['pair']}-", f"images/{row['pair'].rpartition('-')[0]}-")
    write_text(page, text)
    look(driver, page, width=1280)
    driver.execute_script("""
        window.took = {};
        addEventListener("keydown", ({key}) => {
          const begun = performance.now(), {port1, port2} = new MessageChannel();
          port1.onmessage = () => (took[key] ??= []).push(performance.now() - begun);
          requestAnimationFrame(() => port2.postMessage(0));  // answered when the frame is drawn
        }, true);""")
    for key in "jazo2ubkn" * 5:
        ActionChains(driver, duration=0).send_keys(key).perform()
    took = driver.execute_script("return took")
    assert set(took) == set("jazo2ubkn")
    middle = {key: sorted(times)[len(times) // 2] for key, times in took.items()}
    assert max(middle.values()) < 50, json.dumps(middle)
    assert errors(driver) == []
