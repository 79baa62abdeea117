"""Characters as strokes, and how a test draws them and waits for answers."""

import re

# Strokes in units of the pad's side.
R = [
    [(0.3, 0.85), (0.3, 0.15), (0.55, 0.15), (0.68, 0.25), (0.66, 0.42), (0.52, 0.5), (0.3, 0.5)],
    [(0.48, 0.5), (0.72, 0.85)],
]
SHAPES = {
    "R": R,
    "H": [[(0.28, 0.15), (0.28, 0.85)], [(0.72, 0.15), (0.72, 0.85)], [(0.28, 0.5), (0.72, 0.5)]],
    "T": [[(0.2, 0.18), (0.8, 0.18)], [(0.5, 0.18), (0.5, 0.86)]],
    "E": [[(0.7, 0.15), (0.3, 0.15), (0.3, 0.85), (0.7, 0.85)], [(0.3, 0.5), (0.62, 0.5)]],
    "4": [[(0.6, 0.15), (0.25, 0.6), (0.78, 0.6)], [(0.62, 0.3), (0.62, 0.88)]],
    "7": [[(0.25, 0.18), (0.75, 0.18), (0.45, 0.86)]],
    "3": [
        [
            (0.3, 0.22),
            (0.45, 0.14),
            (0.64, 0.2),
            (0.66, 0.36),
            (0.46, 0.47),
            (0.66, 0.58),
            (0.68, 0.76),
            (0.48, 0.87),
            (0.28, 0.78),
        ]
    ],
}


def draw(page, strokes):
    box = page.locator("#pad").bounding_box()
    for stroke in strokes:
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=5)
        page.mouse.up()


def says(page, selector, text):
    """Wait until an element that is in sight holds the text."""
    page.locator(selector).filter(has_text=re.compile(text)).filter(visible=True).wait_for()


def answered(page, character):
    says(page, "#character", f"^{re.escape(character)}$")
    page.locator("#result:not(.stale)").wait_for()


def ink(page):
    """How many pixels of the pad are drawn on."""
    count = """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
        const c = document.getElementById('pad');
        const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        done(pixels.filter((v, i) => i % 4 === 3 && v > 127).length); })))"""
    return page.evaluate(count)
