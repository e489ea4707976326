"""The report's page: one HTML file that needs nothing else, neither network nor scripts."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from xpkern.report.style import INK, PAPER


@dataclass(frozen=True)
class Shown:
    """A part of the report as the page has it.

    Attributes
    ----------
    name, section, title, caption : str
    image : bytes, optional
        PNG of a figure.
    rows : (heads, cells), optional
        Of a table.
    why_not : str, optional
        What it needs, or why there is nothing to show.
    links : mapping of str to str
        Files behind it, by what they are.
    width : float
        Of a figure, in inches.
    """

    name: str
    section: str
    title: str
    caption: str
    links: Mapping[str, str]
    image: bytes | None = None
    rows: tuple[tuple[str, ...], list[tuple[str, ...]]] | None = None
    why_not: str | None = None
    width: float = 10.0


_STYLE = f"""
:root {{ color-scheme: light dark; --paper: {PAPER}; --back: #f4f6f8; --ink: {INK}; --quiet: #56616d;
  --line: #dde2e7; --accent: #0072b2; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #141414; --back: #0b0c0d; --ink: #e6eaee; --quiet: #a3adb8;
  --line: #2f353b; --accent: #5db4e6; }} figure img {{ filter: invert(.92) hue-rotate(180deg); }} }}
@media print {{ figure img {{ filter: none; }} }}
* {{ box-sizing: border-box; }}
html {{ scroll-behavior: smooth; scroll-padding-top: 3.6rem; }}
body {{ margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: break-word; }}
header, main, footer {{ max-width: 1180px; margin: 0 auto; padding: 0 1.1rem; }}
header {{ padding-top: 1.6rem; }}
h1 {{ font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }}
h2 {{ font-size: 1.3rem; margin: 2.4rem 0 .8rem; }}
h3 {{ font-size: 1.05rem; margin: 0 0 .4rem; }}
a {{ color: var(--accent); }}
code {{ font-size: .92em; }}
.lead, .caption, .links, .why {{ color: var(--quiet); }}
.lead {{ margin: 0 0 1rem; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem;
  margin: 1rem 0; padding: 0; }}
.tiles div {{ background: var(--paper); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }}
.tiles dt {{ color: var(--quiet); font-size: .85rem; }}
.tiles dd {{ margin: 0; font-size: 1.35rem; font-weight: 650; font-variant-numeric: tabular-nums; }}
nav {{ position: sticky; top: 0; z-index: 1; background: var(--back); border-bottom: 1px solid var(--line); }}
nav ul {{ display: flex; gap: 1.3rem; overflow-x: auto; max-width: 1180px; margin: 0 auto; padding: .7rem 1.1rem;
  list-style: none; white-space: nowrap; }}
nav a {{ text-decoration: none; font-weight: 600; }}
figure, .table {{ background: var(--paper); border: 1px solid var(--line); border-radius: .5rem; margin: 0 0 1.2rem;
  padding: 1rem 1.1rem; }}
.scroll {{ overflow-x: auto; }}
figure img {{ display: block; height: auto; max-width: 100%; margin: 0 auto; }}
.caption {{ font-size: .92rem; margin: .6rem 0 .2rem; max-width: 62rem; }}
.links {{ font-size: .88rem; margin: .2rem 0 0; }}
.links a {{ margin-right: .9rem; }}
.why {{ border-left: 3px solid var(--line); margin: .2rem 0; padding-left: .8rem; }}
table {{ border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; min-width: 60%; }}
th, td {{ padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }}
th {{ color: var(--quiet); font-weight: 600; }}
.number {{ text-align: right; white-space: nowrap; }}
details {{ margin: 1.2rem 0; }}
summary {{ cursor: pointer; font-weight: 600; }}
footer {{ color: var(--quiet); font-size: .88rem; padding-bottom: 2.5rem; }}
@media (max-width: 720px) {{ figure, .table {{ padding: .8rem .7rem; }}
  figure img.wide {{ max-width: none; width: 680px; }}
  h1 {{ font-size: 1.4rem; }} .tiles {{ grid-template-columns: repeat(2, 1fr); }} }}
@media print {{ nav {{ display: none; }} figure, .table {{ break-inside: avoid; }} }}
"""


def page(
    title: str, lead: str, tiles: Sequence[tuple[str, str]], parts: Sequence[Shown], attributes: Mapping[str, object]
) -> str:
    """The page.

    Parameters
    ----------
    title, lead : str
        Name of the catalogue, and a sentence on it.
    tiles : sequence of (str, str)
        Numbers that say most: what, how much.
    parts : sequence of Shown
        In order; parts of a section follow each other.
    attributes : mapping of str to object
        What the catalogue says of its making.

    Returns
    -------
    str
        HTML; equal input gives equal text.
    """
    sections = list(dict.fromkeys(part.section for part in parts))
    links = "".join(f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>' for name in sections)
    body = []
    for name in sections:
        body.append(f'<section id="{_anchor(name)}">\n<h2>{escape(name)}</h2>')
        body += [_part(part) for part in parts if part.section == name]
        body.append("</section>")
    tile_text = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(number)}</dd></div>" for what, number in tiles)
    made = "".join(
        f"<tr><td>{escape(str(key))}</td><td>{escape(_plain(value))}</td></tr>"
        for key, value in sorted(attributes.items())
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}: report of xpkern</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
<dl class="tiles">{tile_text}</dl>
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{chr(10).join(body)}
</main>
<footer>
<details><summary>What made the catalogue</summary><div class="scroll"><table>{made}</table></div></details>
<p>Figures are numbered as in Zhang, Green &amp; Rix (2023), whose figures of the same kind they are. Colours: shades of
blue for numbers of stars, orange for percentiles, blue and vermilion for negative and positive.
“ECSV” is the data behind a figure, as astropy and TOPCAT read it.</p>
</footer>
</body>
</html>
"""


def _anchor(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def _plain(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _part(part: Shown) -> str:
    heading = f"<h3>{escape(part.title)}</h3>"
    if part.why_not is not None:
        text = f'<p class="why">No data: {escape(part.why_not)}.</p>'
        return f'<figure id="{part.name}" class="empty">{heading}{text}</figure>'
    links = "".join(f'<a href="{escape(target)}">{escape(what)}</a>' for what, target in part.links.items())
    below = f'<p class="caption">{_with_code(part.caption)}</p><p class="links">{links}</p>'
    if part.rows is not None:
        return (
            f'<div id="{part.name}" class="table">{heading}<div class="scroll">{_table(*part.rows)}</div>{below}</div>'
        )
    assert part.image is not None
    wide = ' class="wide"' if part.width > 8.0 else ""
    source = f"data:image/png;base64,{base64.b64encode(part.image).decode()}"
    image = f'<img{wide} src="{source}" alt="{escape(part.title)}" style="width: {part.width * 112:.0f}px">'
    return f'<figure id="{part.name}">{heading}<div class="scroll" tabindex="0">{image}</div>{below}</figure>'


def _with_code(text: str) -> str:
    """Text with what stands between backticks as code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if k % 2 else piece for k, piece in enumerate(pieces))


def _table(heads: tuple[str, ...], cells: list[tuple[str, ...]]) -> str:
    is_number = [all(_looks_like_number(row[k]) for row in cells) for k in range(len(heads))]
    kinds = [' class="number"' if number else "" for number in is_number]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, heads, strict=True))
    rows = [
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in cells
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _looks_like_number(text: str) -> bool:
    return text.replace(",", "").replace("%", "").strip().lstrip("+-−").replace(".", "", 1).isdigit() or text == "nan"
