"""One HTML page of headings, tables and pictures that needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --text: #1b1e23; --soft: #5b626d; --line: #d9dde3; --back: #ffffff; --card: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --soft: #a2a9b4; --line: #3a3f47; --back: #16181c; --card: #1f2227; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--back); }
h1 { margin: 0; font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 .6rem; font-size: 1.15rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
.soft, figcaption { color: var(--soft); margin: .2rem 0; font-size: .9rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .6rem; margin: 1.2rem 0; }
dl div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-weight: 600; }
.scrolls { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.words th, .words td { text-align: left; }
figure { margin: 0; }
img { max-width: 100%; height: auto; border-radius: .4rem; }
.scrolls img { max-width: none; width: max(100%, 44rem); }
@media (prefers-color-scheme: dark) { img.plot { filter: invert(.9) hue-rotate(180deg); } }
pre { background: var(--card); padding: .8rem; border-radius: .5rem; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; color: var(--soft); }
"""


class Sections:
    """The page's parts in their order. All text is escaped here."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def facts(self, facts: Mapping[str, str]) -> None:
        """Figures to see first, {name: value}."""
        self.parts.append(
            "<dl>" + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()) + "</dl>"
        )

    def table(
        self,
        title: str,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        folded: bool = False,
        words: bool = False,
    ) -> None:
        """A table; `folded` hides it until it is asked for, `words` sets all columns to the left."""
        head = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
        body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
        kind = " class=words" if words else ""
        table = f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        table = f'<div class="scrolls">{table}</div>'
        self._add(title, f"<details><summary>{len(rows)} rows</summary>{table}</details>" if folded else table)

    def picture(self, title: str, path: Path, caption: str, scrolls: bool = False) -> None:
        """A PNG file, whole, in the page; left out where there is none. `scrolls`: on a phone it is not shrunk to the
        screen.
        """
        if not path.is_file():
            return
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        kind = "plot" if path.parent.name == "report" and path.stem != "samples" else "photo"
        image = f'<img class="{kind}" alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        kind = " class=scrolls" if scrolls else ""
        self._add(title, f"<figure><div{kind}>{image}</div><figcaption>{escape(caption)}.</figcaption></figure>")

    def text(self, title: str, text: str) -> None:
        """Text as it stands, in letters of one width."""
        self._add(title, f"<pre>{escape(text)}</pre>")

    def _add(self, title: str, content: str) -> None:
        self.parts.append(f"<section><h2>{escape(title)}</h2>{content}</section>")


def html(title: str, subtitle: str, sections: Sections) -> str:
    """The page, whole."""
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f'<header><h1>Run {escape(title)}</h1><p class="soft">{escape(subtitle)}</p></header><main>',
            *sections.parts,
            "</main></body></html>\n",
        ]
    )
