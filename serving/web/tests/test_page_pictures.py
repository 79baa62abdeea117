"""Pictures on the page, and a service that is away or asks for a key."""

import csv
import re

import pytest
from drawing import SHAPES, answered, draw, says
from PIL import Image

from serving.local import SAMPLES, running

pytestmark = pytest.mark.browser


def test_one_picture_is_read_in_the_panel(visit, server):
    page = visit(server.url)
    page.set_input_files("#files", SAMPLES / "A_framed_box.png")
    answered(page, "A")
    says(page, "#source-name", "A_framed_box.png")
    assert page.evaluate("document.getElementById('source-image').naturalWidth") > 0
    assert page.locator("#gallery").is_hidden()
    draw(page, SHAPES["T"])
    answered(page, "T")
    assert page.locator("#source").is_hidden()


def test_several_pictures_are_a_table_and_a_csv(visit, server, tmp_path):
    (tmp_path / "=notes, old.txt").write_text("no picture")
    Image.new("L", (40, 40), 255).save(tmp_path / "white.png")
    samples = sorted(SAMPLES.iterdir())
    page = visit(server.url)
    page.set_input_files("#files", [*samples, *sorted(tmp_path.iterdir())])
    says(page, "#progress", f"^{len(samples)} read, 2 could not be read.$")
    rows = page.locator("#rows tr").all_inner_texts()
    assert len(rows) == len(samples) + 2
    for sample, row in zip(samples, rows, strict=False):
        assert re.search(rf"{re.escape(sample.name)}\s+{sample.name[0]}\s+9\d\.\d%", row), row
    assert "not a picture that can be read here" in rows[-2]
    assert "nothing to read" in rows[-1]
    assert page.locator("#rows canvas").count() == len(samples)
    with page.expect_download() as download:
        page.click("#download")
    with download.value.path().open(newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert [line["character"] for line in table] == [sample.name[0] for sample in samples] + ["", ""]
    assert [(line["file"], line["status"], line["error"]) for line in table[-2:]] == [
        ("'=notes, old.txt", "error", "unsupported_format"),
        ("white.png", "error", "blank_image"),
    ]
    assert all(re.fullmatch(r"0\.\d{4}", line["confidence"]) for line in table[:-2])
    page.click("#remove")
    assert page.locator("#gallery").is_hidden()


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_pictures_are_pasted_and_dropped(visit, server, event):
    page = visit(server.url)
    bring = """([name, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([Uint8Array.from(bytes)], "brought.png", { type: "image/png" }));
        const options = { bubbles: true, cancelable: true };
        document.body.dispatchEvent(name === "paste" ? new ClipboardEvent(name, { ...options, clipboardData: data })
            : new DragEvent(name, { ...options, dataTransfer: data }));
    }"""
    page.evaluate(bring, [event, list((SAMPLES / "K_in_a_corner.png").read_bytes())])
    answered(page, "K")
    says(page, "#source-name", "brought.png")


def test_a_wrong_file_is_said_in_words(visit, server, tmp_path):
    page = visit(server.url)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "large.png").write_bytes(b"x" * (17 * 1024 * 1024))
    page.set_input_files("#files", tmp_path / "notes.txt")
    says(page, "#notice", "not a picture that can be read here")
    assert page.locator("#spoken").inner_text() == page.locator("#notice").inner_text()
    page.set_input_files("#files", tmp_path / "large.png")
    says(page, "#notice", "too large")
    draw(page, SHAPES["T"])
    answered(page, "T")
    assert page.locator("#notice").is_hidden()


def cut_off(page):
    """No connection: the network, the pod or its HAProxy is away."""
    page.context.set_offline(True)
    return lambda: page.context.set_offline(False)


def torchserve_away(page):
    """HAProxy is there, and no worker is."""
    refusal = {"status": 503, "json": {"error": {"code": "overloaded", "message": "no worker is free"}}}
    for address in ("**/api/predict*", "**/ready"):
        page.route(address, lambda route: route.fulfill(**refusal))
    return page.unroute_all


@pytest.mark.parametrize("away", [cut_off, torchserve_away])
def test_the_service_goes_and_comes_back(visit, server, away):
    page = visit(server.url)
    come_back = away(page)
    draw(page, SHAPES["H"])
    says(page, "#notice", "^The service cannot be reached; trying again…$")
    page.set_input_files("#files", sorted(SAMPLES.iterdir())[:2])
    says(page, "#progress", "cannot be reached")
    page.wait_for_timeout(1500)
    come_back()
    answered(page, "H")
    says(page, "#progress", "^2 read.$")
    assert page.locator("#notice").is_hidden()


@pytest.mark.usefixtures("one_worker")
def test_a_key_is_asked_for_and_kept_for_the_tab(visit, mar, monkeypatch):
    monkeypatch.setenv("API_KEY", "right")
    with running(mar) as server:
        page = visit(server.url)
        draw(page, SHAPES["T"])
        for key, text in (("wrong", "Enter the API key"), ("right", "not valid")):
            says(page, "#key-text", text)
            page.fill("#key", key)
            page.keyboard.press("Enter")
        answered(page, "T")
        page.reload()
        draw(page, SHAPES["H"])
        answered(page, "H")
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        other = visit(server.url)
        draw(other, SHAPES["H"])
        says(other, "#key-text", "Enter the API key")
        other.click("#key-cancel")
        says(other, "#notice", "needs a key")
        other.set_input_files("#files", sorted(SAMPLES.iterdir()))
        says(other, "#key-text", "Enter the API key")
        other.click("#key-cancel")
        says(other, "#progress", "^0 read, 13 could not be read.$")
