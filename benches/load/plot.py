"""The ratios and the idle clients' memory as one SVG that reads well on light and on dark pages."""

from xml.sax.saxutils import escape

import scenarios

LABELS, PANEL, GAP, BAR, AIR = 205, 190, 66, 11, 9
TOP, MARGIN = 96, 16
WIDTH = MARGIN + LABELS + 3 * (PANEL + GAP) + MARGIN
NAMES = {"pgbouncer": "PgBouncer", "direct": "no pooler", "before": "pgtenant before"}
# What a bar shows at most; a longer one is cut and says its value all the same.
MOST = 3.0
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f } .title { font-size: 17px; font-weight: 600 }
.head { font-weight: 600 } .note, .value { fill: #59636e } .value { font-size: 10px }
.one { stroke: #59636e; stroke-dasharray: 3 3 } .budget { stroke: #cf222e; stroke-width: 2 }
.axis { stroke: #d1d9e0 } .s0 { fill: #1f6feb } .s1 { fill: #8c959f } .s2 { fill: #bf8700 } .s3 { fill: #2da44e }
.s4 { fill: #8250df } .s5 { fill: #bc4c00 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .note, .value { fill: #9198a1 } .one { stroke: #9198a1 } .budget { stroke: #ff7b72 }
.axis { stroke: #3d444d } .s0 { fill: #58a6ff } .s1 { fill: #6e7681 } .s2 { fill: #d29922 } .s3 { fill: #3fb950 }
.s4 { fill: #a371f7 } .s5 { fill: #f0883e } }
"""
PANELS = (("cpu_us", "cpu", "CPU of the pooler", "less is better"),
          ("tps", "tps", "Throughput", "more is better"),
          ("p99_ms", "p99", "99th percentile of latency", "less is better"))


class Drawing:
    def __init__(self):
        self.parts = []

    def text(self, x, y, words, kind="", anchor="start"):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>')

    def line(self, x, top, bottom, kind):
        self.parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" class="{kind}"/>')

    def bar(self, x, y, width, kind):
        size = f'width="{max(width, 0.5):.1f}" height="{BAR - 2}"'
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{kind}"/>')

    def value(self, x, y, value, digits):
        """In a column of its own behind the panel, where no bar or mark is in the way."""
        self.text(x + PANEL + 34, y + 8, f"{value:,.{digits}f}", "value", "end")

    def written(self, height):
        opening = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
                   f'height="{height:.0f}" role="img">')
        return "\n".join([opening, f"<style>{STYLE}</style>", *self.parts, "</svg>", ""])


def legend(drawing, series, y):
    x = MARGIN
    for number, name in enumerate(series):
        drawing.bar(x, y - 9, 14, f"s{number}")
        drawing.text(x + 20, y, NAMES.get(name, name))
        x += 44 + 7.2 * len(NAMES.get(name, name))
    drawing.line(x + 2, y - 10, y + 1, "budget")
    drawing.text(x + 10, y, "pgtenant's budget")


def compared(drawing, rows, series, y):
    """Each scenario's bars, their length the ratio to PgBouncer; returns where they end."""
    by_scenario = {}
    for row in rows:
        if (to := row["ratios"].get("pgbouncer")) and any(to.values()):
            by_scenario.setdefault(row["scenario"], {})[row["target"]] = to
    left = [MARGIN + LABELS + number * (PANEL + GAP) for number in range(len(PANELS))]
    for x, (_, _, title, better) in zip(left, PANELS):
        drawing.text(x, y, title, "head")
        drawing.text(x, y + 15, f"PgBouncer = 1; {better}", "note")
    top = y = y + 28
    for scenario, targets in by_scenario.items():
        about, present = scenarios.BY_NAME[scenario], [name for name in series if name in targets]
        drawing.text(MARGIN, y + BAR * len(present) / 2 + 3, about.title)
        for x, (figure, budget, _, _) in zip(left, PANELS):
            for place, name in enumerate(present):
                if (value := targets[name].get(figure)) is None:
                    continue
                line = y + place * BAR
                drawing.bar(x, line, min(value, MOST) / MOST * PANEL, f"s{series.index(name)}")
                drawing.value(x, line, value, 2)
                if name == "pgtenant" and (limit := getattr(about.budget, budget)):
                    drawing.line(x + limit / MOST * PANEL, line - 2, line + BAR, "budget")
        y += BAR * max(len(present), 1) + AIR
    for x in left:
        drawing.line(x, top - 4, y - AIR + 2, "axis")
        drawing.line(x + PANEL / MOST, top - 4, y - AIR + 2, "one")
    return y


def memory(drawing, rows, series, y):
    """Kilobytes of each idle client after a query."""
    found = [(row, row["figures"]["kb_used"]["median"]) for row in rows if "kb_used" in row["figures"]]
    if not found:
        return y
    most, x = max(kb for _, kb in found), MARGIN + LABELS
    drawing.text(x, y, "Memory of an idle client, KB", "head")
    drawing.text(x, y + 15, "after one query, 5,000 clients; less is better", "note")
    top = y = y + 28
    for scenario in dict.fromkeys(row["scenario"] for row, _ in found):
        bars = [(series.index(row["target"]), kb) for row, kb in found if row["scenario"] == scenario]
        drawing.text(MARGIN, y + BAR * len(bars) / 2 + 3, scenarios.BY_NAME[scenario].title)
        for place, (number, kb) in enumerate(sorted(bars)):
            drawing.bar(x, y + place * BAR, kb / most * PANEL, f"s{number}")
            drawing.value(x, y + place * BAR, kb, 1)
            limit = scenarios.BY_NAME[scenario].budget.kilobytes
            if series[number] == "pgtenant" and limit and limit <= most:
                drawing.line(x + limit / most * PANEL, y + place * BAR - 2, y + (place + 1) * BAR, "budget")
        y += BAR * len(bars) + AIR
    drawing.line(x, top - 4, y - AIR + 2, "axis")
    return y


def drawn(rows, subtitle):
    """pgtenant first and PgBouncer, where it is a bar of its own, second."""
    names = list(dict.fromkeys(row["target"] for row in rows if row["figures"]))
    order = ["pgtenant", "pgbouncer", "direct"]
    series = [name for name in order if name in names] + [name for name in names if name not in order]
    drawing = Drawing()
    drawing.text(MARGIN, 28, "pgtenant beside PgBouncer, by transaction", "title")
    drawing.text(MARGIN, 48, subtitle, "note")
    legend(drawing, series, 72)
    y = compared(drawing, rows, series, TOP + 10)
    return drawing.written(memory(drawing, rows, series, y + 26) + MARGIN)
