"""The shell of a standalone HTML page: style, escaping, small building blocks.

Nothing is loaded from elsewhere. Blocks take plain text and escape it; a `Html` is already markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Markup that is safe to insert as it is."""


def render(content: str) -> str:
    """Returns markup as it is and plain text escaped."""
    return content if isinstance(content, Html) else escape(content)


def tag(name: str, *contents: str, **attributes: str) -> Html:
    """Returns `<name attributes>contents</name>`; `css` stands for `class`."""
    written = "".join(
        f' {"class" if key == "css" else key.replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{written}>{''.join(map(render, contents))}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Returns the parts one after another."""
    return Html("".join(map(render, parts)))


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str,
    numeric: Sequence[int] = (),
) -> Html:
    """Returns a table in a box that scrolls sideways on a narrow screen.

    Args:
      header: of the columns.
      rows: cells; the first of each is the row's header.
      caption: read out by screen readers, and shown.
      numeric: columns set right-aligned.
    """
    head = join(
        tag("th", cell, scope="col", css="n" if column in numeric else "")
        for column, cell in enumerate(header)
    )
    body = []
    for first, *rest in rows:
        cells = [tag("th", first, scope="row")]
        cells += [
            tag("td", cell, css="n" if column in numeric else "")
            for column, cell in enumerate(rest, start=1)
        ]
        body.append(tag("tr", *cells))
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag("thead", tag("tr", head)),
            tag("tbody", *body),
        ),
        css="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def image(uri: str, alt: str, **attributes: str) -> Html:
    """Returns an image with a text alternative."""
    written = "".join(f' {key}="{escape(value)}"' for key, value in attributes.items())
    return Html(f'<img src="{escape(uri)}" alt="{escape(alt)}" loading="lazy"{written}>')


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Returns a legend from (swatch markup or CSS class, name) pairs."""
    items = []
    for swatch, name in entries:
        mark = swatch if isinstance(swatch, Html) else tag("i", css=f"swatch {swatch}")
        items.append(tag("span", mark, name, css="key"))
    return tag("p", *items, css="legend")


def section(anchor: str, title: str, lead: str, *contents: str) -> Html:
    """Returns a section with a heading and a sentence that says what one sees."""
    return tag(
        "section",
        tag("h2", title, id=f"{anchor}-title"),
        tag("p", lead, css="lead"),
        *contents,
        id=anchor,
        aria_labelledby=f"{anchor}-title",
    )


def document(title: str, body: str) -> str:
    """Returns the whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>{render(body)}</body>\n</html>\n"
    )


_STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfaf7; --card: #ffffff; --ink: #1d2129; --soft: #5d6573; --line: #e3e0d8;
  --accent: #2f5bd0; --good: #1a7f4b; --bad: #b3362b; --wash: #f1efe8; --heat: 47, 91, 208;
  --s0: #2f5bd0; --s1: #d9822b; --s2: #2a9d6f; --s3: #b3417a; --s4: #7a5cc7; --s5: #15899c;
  --s6: #8a6d3b; --s7: #6b7280;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161b; --card: #1b1e25; --ink: #e7e9ee; --soft: #a2a9b7; --line: #2d313b;
    --accent: #8fb0ff; --good: #62d39b; --bad: #ff8f83; --wash: #21252e; --heat: 120, 160, 255;
    --s0: #7ea2ff; --s1: #f0a050; --s2: #55c897; --s3: #e07bae; --s4: #a98ff0; --s5: #4dbdd0;
    --s6: #c9a86a; --s7: #9aa1af;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.6 ui-sans-serif, system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial,
    "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; text-rendering: optimizeLegibility;
}
main, header, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 3.5rem; }
.eyebrow {
  margin: 0 0 .4rem; color: var(--accent); font-weight: 600; font-size: .8rem;
  letter-spacing: .09em; text-transform: uppercase;
}
h1, h2, h3 {
  font-family: Charter, "Iowan Old Style", "Palatino Linotype", Georgia, "DejaVu Serif", serif;
  line-height: 1.2; text-wrap: balance; font-weight: 600;
}
h1 { font-size: clamp(2rem, 5vw, 3rem); margin: 0 0 .8rem; letter-spacing: -.015em; }
h2 { font-size: 1.65rem; margin: 0 0 .35rem; letter-spacing: -.01em; }
h3 { font-size: 1.08rem; margin: 1.8rem 0 .5rem; }
p { max-width: 44rem; margin: 0 0 1rem; text-wrap: pretty; }
.summary { font-size: 1.18rem; }
.lead { color: var(--soft); margin-bottom: 1.4rem; }
.note { color: var(--soft); font-size: .88rem; margin-top: .8rem; }
section { padding: 2.6rem 0 .6rem; margin-top: 2.2rem; border-top: 1px solid var(--line); }
a { color: var(--accent); text-underline-offset: .18em; }
nav { margin: 1.6rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; font-size: .92rem; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1.1rem 1.6rem;
  margin: 1.8rem 0 0; padding: 1.2rem 1.4rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 12px;
}
.facts div { min-width: 0; }
.facts dt { color: var(--soft); font-size: .78rem; letter-spacing: .03em; }
.facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 0 0 1.2rem; }
.scroll:focus-visible, summary:focus-visible, a:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 4px;
}
table { border-collapse: collapse; width: 100%; font-size: .94rem; }
caption { text-align: left; color: var(--soft); font-size: .86rem; padding-bottom: .5rem; }
th, td { padding: .42rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
thead th { font-size: .78rem; color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; }
section#results tbody th { min-width: 11rem; }
.n { text-align: right; white-space: nowrap; }
.value { font-weight: 700; font-size: 1.02rem; }
.good { color: var(--good); font-weight: 600; white-space: nowrap; }
.bad { color: var(--bad); font-weight: 600; white-space: nowrap; }
.range { display: block; width: 13rem; height: 1.15rem; }
.range .track { fill: var(--line); } .range .band { fill: var(--s0); opacity: .28; }
.range .point { fill: var(--s0); } .range .at { stroke: var(--soft); stroke-width: 1.4; }
.range .wanted { fill: var(--s1); }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1rem 1.1rem; margin: 0; min-width: 0; }
.chart > svg { display: block; width: 100%; height: auto; max-width: 46rem; }
.chart + .scroll { margin-top: 1.4rem; }
.chart figcaption { font-size: .88rem; color: var(--soft); margin-bottom: .5rem; }
.grid-2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 1.2rem; margin-bottom: 1.2rem; }
.grid-3 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr));
  gap: 1.2rem; margin-bottom: 1.2rem; }
svg text { fill: var(--soft); font: 11px ui-sans-serif, system-ui, "DejaVu Sans", sans-serif; }
svg text.label { fill: var(--ink); font-size: 12px; }
.grid { stroke: var(--line); stroke-width: 1; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.curve.s0 { stroke: var(--s0); } .curve.s1 { stroke: var(--s1); } .curve.s2 { stroke: var(--s2); }
.curve.s3 { stroke: var(--s3); } .curve.s4 { stroke: var(--s4); } .curve.s5 { stroke: var(--s5); }
.curve.s6 { stroke: var(--s6); } .curve.s7 { stroke: var(--s7); }
.s0 { fill: var(--s0); } .s1 { fill: var(--s1); } .s2 { fill: var(--s2); } .s3 { fill: var(--s3); }
.s4 { fill: var(--s4); } .s5 { fill: var(--s5); } .s6 { fill: var(--s6); } .s7 { fill: var(--s7); }
polyline.s0, polyline.s1, polyline.s2, polyline.s3, polyline.s4, polyline.s5, polyline.s6,
polyline.s7 { fill: none; }
.whisker { stroke: var(--ink); stroke-width: 1.3; }
.chance { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 3 2; }
.mark { stroke: var(--card); stroke-width: .7; } .faint { fill: var(--soft); opacity: .35; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .85rem;
  color: var(--soft); margin: .5rem 0 0; max-width: none; }
.key { display: inline-flex; align-items: center; gap: .4rem; }
.swatch { width: .85rem; height: .85rem; border-radius: 3px; display: inline-block; }
.swatch.s0 { background: var(--s0); } .swatch.s1 { background: var(--s1); }
.swatch.s2 { background: var(--s2); } .swatch.s3 { background: var(--s3); }
.swatch.s4 { background: var(--s4); } .swatch.s5 { background: var(--s5); }
.swatch.s6 { background: var(--s6); } .swatch.s7 { background: var(--s7); }
.swatch.tick { width: 0; border-radius: 0; border-left: 2px dashed var(--bad); }
.marker { width: .95rem; height: .95rem; }
.cases { display: grid; gap: 1.2rem; }
.case { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1rem 1.2rem 1.1rem; }
.case > h4 { margin: 0 0 .15rem; font-size: 1.05rem; font-weight: 600; }
.case > p { margin: 0 0 .7rem; font-size: .88rem; color: var(--soft); }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(14rem, 100%), 1fr));
  gap: .9rem; margin: 0; padding: 0; list-style: none; }
.clips.wide { grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.clip { margin: 0; min-width: 0; }
.clip img { display: block; width: 100%; height: auto; border-radius: 6px;
  border: 2px solid var(--line); }
.clip.right img { border-color: var(--good); } .clip.wrong img { border-color: var(--bad); }
.clip p { font-size: .84rem; line-height: 1.4; margin: .3rem 0 0; }
.confusion { width: auto; } .confusion caption { white-space: nowrap; }
.confusion td { text-align: center; min-width: 2.2rem; }
.confusion td, .confusion th { padding: .32rem .38rem; font-size: .8rem; }
.confusion thead th { text-align: center; }
details { margin: .4rem 0 1rem; } summary { cursor: pointer; color: var(--accent); }
.glossary dt { font-weight: 600; margin-top: .8rem; }
.glossary dd { margin: 0; color: var(--soft); max-width: 44rem; }
footer { padding: 2.5rem 1.5rem 4rem; color: var(--soft); font-size: .88rem; }
code { font: .9em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: var(--wash); padding: .1em .35em; border-radius: 4px; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  .facts { grid-template-columns: 1fr 1fr; } .range { width: 8rem; }
}
@media print { nav { display: none; } section { break-inside: avoid-page; } }
"""
