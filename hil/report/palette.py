"""The report's colours, each in a light and a dark form, and the style sheet of its page.

Hues follow Okabe and Ito's colour-blind-safe set (https://jfly.uni-koeln.de/color/); neighbouring fills also differ in
lightness or hatching, and every colour is named in words where it is used. The figure is drawn in the light colours;
on the page each becomes a CSS variable, so that one drawing serves light and dark screens.
"""

from __future__ import annotations

import enum
import re


class Tone(enum.Enum):
    """A colour by its role: (light, dark). All light forms differ, since the page finds them by value."""

    PAPER = ("#ffffff", "#12171c")
    INK = ("#1d2630", "#e8ecef")
    MUTED = ("#55626f", "#a5b0ba")
    GRID = ("#dce1e6", "#323b44")
    SHADE = ("#eef1f3", "#1e252c")
    STRONG_TEXT = ("#fdfdfd", "#0e1216")

    OPEN = ("#bfe3d3", "#1d5643")
    HOLD = ("#f4d583", "#6f5410")
    CLOSED = ("#46535f", "#a9b4be")
    BLOCKED = ("#d3d9df", "#3a444e")
    READY = ("#cbe2f5", "#1d4263")
    RUNNING = ("#0b69b0", "#56aeea")
    YIELDING = ("#f0a35c", "#8a4c10")
    PAUSED = ("#d9c7e6", "#533a66")
    FAULT = ("#a92318", "#ff8577")
    OTHER = ("#e4e4e4", "#454545")

    FINISHED = ("#0a6fba", "#5ab2ee")
    GIVEN_BACK = ("#f2bd85", "#7c4a16")

    HEAT = ("#c04a00", "#ff9a5e")
    POWER = ("#0072b2", "#61b5f0")
    CHARGE = ("#00795b", "#3ecb9f")
    PACK = ("#8d4a86", "#dc9bd3")
    COUNT = ("#37474f", "#b9c6ce")

    DRIVER = ("#b8400e", "#ff9166")
    AGENT = ("#1565a8", "#6db8f2")

    @property
    def light(self) -> str:
        """`#rrggbb` on white."""
        return self.value[0]

    @property
    def css(self) -> str:
        """The CSS variable that holds it."""
        return f"--{self.name.lower().replace('_', '-')}"


_BY_LIGHT = {tone.light: tone for tone in Tone}


def themed(style: str) -> str:
    """An SVG style or colour in the light colours, rewritten to follow the page's variables."""

    def variable(match: re.Match[str]) -> str:
        tone = _BY_LIGHT.get(match.group())
        return f"var({tone.css})" if tone else match.group()

    return re.sub(r"#[0-9a-f]{6}\b", variable, style)


def style_sheet() -> str:
    """The page's whole CSS."""
    light = "".join(f"{tone.css}:{tone.value[0]};" for tone in Tone)
    dark = "".join(f"{tone.css}:{tone.value[1]};" for tone in Tone)
    return (
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{_RULES}"
    )


_RULES = """\
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:2.5rem 1.5rem 4rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Arial,sans-serif}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .25rem;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.5rem 0 .5rem}
p{margin:.25rem 0;max-width:75ch}
.quiet,caption,figcaption{color:var(--muted)}
.verdict{display:inline-block;margin:1rem 0 0;padding:.35rem .8rem;border-radius:.4rem;font-weight:600}
.held{background:var(--open);color:var(--ink)}
.missed{background:var(--fault);color:var(--strong-text)}
.unjudged{background:var(--hold);color:var(--ink)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:0 3rem;align-items:start}
.scroll{overflow-x:auto}
table{border-collapse:collapse;min-width:min(34rem,100%);font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:0 0 .4rem;font-size:.88rem}
th,td{text-align:left;vertical-align:top;padding:.32rem 1.3rem .32rem 0;border-bottom:1px solid var(--grid);
max-width:40rem;overflow-wrap:break-word}
th:last-child,td:last-child{padding-right:0}
thead th{color:var(--muted);font-weight:600;font-size:.82rem;white-space:nowrap}
tbody th{font-weight:500}
.pair table{width:100%;min-width:0}
.number{text-align:right;white-space:nowrap}
td.yes,td.no{white-space:nowrap}
td.no{color:var(--fault);font-weight:700}
.read{font-family:ui-monospace,"SFMono-Regular",Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre-wrap;
unicode-bidi:isolate}
figure{margin:.5rem 0 0}
figcaption{font-size:.88rem;margin-top:.4rem}
svg{display:block;width:100%;min-width:720px;height:auto}
svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Arial,sans-serif!important}
@media print{body{max-width:none;padding:0}tr,figure{break-inside:avoid}svg{min-width:0}}
"""
