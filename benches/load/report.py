"""Medians, spreads and ratios of all rounds: as tables for people, as JSON, and as a plot."""

import json
import os
import platform
import sys
from statistics import median

import scenarios

# Figure, column, factor, digits.
COLUMNS = (
    ("tps", "tps", 1, 0), ("p50_ms", "p50 ms", 1, 2), ("p99_ms", "p99 ms", 1, 2), ("p999_ms", "p99.9 ms", 1, 2),
    ("mean_ms", "mean ms", 1, 2), ("cpu_us", "CPU µs", 1, 1), ("postgres_us", "PostgreSQL CPU µs", 1, 1),
    ("syscalls", "system calls", 1, 1), ("switches", "switches", 1, 2), ("instructions", "instructions", 1, 0),
    ("peak_kb", "peak MB", 1 / 1024, 1),
)
RATIOS = (("cpu_us", "CPU"), ("tps", "throughput"), ("p99_ms", "p99"))


def progress(figures):
    if "tps" not in figures:
        return f"{figures['kb_idle']:8.1f} KB a client, {figures['kb_used']:.1f} after a query"
    cpu = f", {figures['cpu_us']:.1f} µs CPU" if "cpu_us" in figures else ""
    return f"{figures['tps']:10,.1f} tps{cpu}"


def values(rounds, figure):
    return [one[figure] for one in rounds or [] if one.get(figure) is not None]


def summary(rounds):
    """Median, least and greatest of each figure over the rounds of one target."""
    figures = dict.fromkeys(figure for one in rounds or [] for figure in one)
    found = {figure: values(rounds, figure) for figure in figures}
    return {figure: {"median": median(all), "min": min(all), "max": max(all)} for figure, all in found.items() if all}


def ratio(ours, theirs, figure):
    """The median of the ratios round by round: a slow minute of the machine meets both."""
    pairs = [(a.get(figure), b.get(figure)) for a, b in zip(ours or [], theirs or [])]
    pairs = [a / b for a, b in pairs if a is not None and b]
    return median(pairs) if pairs else None


def summarize(found):
    """`found[scenario][target]` is a list of rounds, or None where the target cannot take the scenario."""
    rows = []
    for scenario, targets in found.items():
        for target, rounds in targets.items():
            row = {"scenario": scenario, "target": target, "figures": summary(rounds), "ratios": {}}
            for base in ("pgbouncer", "direct", "before"):
                if base in targets and base != target:
                    row["ratios"][base] = {figure: ratio(rounds, targets[base], figure) for figure, _ in RATIOS}
            rows.append(row)
    return rows


def failed(found):
    return sum(one["failed"] for targets in found.values() for rounds in targets.values() for one in rounds or [])


def shown(value, digits):
    return "-" if value is None else f"{value:,.{digits}f}"


def table(lines, names):
    """Markdown with even columns, the first `names` of them to the left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]

    def written(line):
        cells = [cell.ljust(width) if column < names else cell.rjust(width)
                 for column, (cell, width) in enumerate(zip(line, widths))]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (width + 1) + ("-" if column < names else ":") for column, width in enumerate(widths)) + "|"
    return "\n".join([written(lines[0]), rule, *(written(line) for line in lines[1:])])


def absolute(rows):
    lines = [("scenario", "target", *(column for _, column, _, _ in COLUMNS))]
    for row in rows:
        figures = row["figures"]
        if "tps" not in figures:
            continue
        cells = []
        for figure, _, factor, digits in COLUMNS:
            found = figures.get(figure)
            text = shown(found and found["median"] * factor, digits)
            if found and figure in ("tps", "cpu_us"):
                text += f" ({shown(found['min'] * factor, digits)}–{shown(found['max'] * factor, digits)})"
            cells.append(text)
        lines.append((row["scenario"], row["target"], *cells))
    return table(lines, 2) if len(lines) > 1 else ""


def judged(value, budget, less):
    """A ratio with its budget, and whether that is met."""
    if value is None or budget is None:
        return shown(value, 2)
    met = value <= budget if less else value >= budget
    return f"{value:.2f} ({'≤' if less else '≥'} {budget:.2f} {'met' if met else 'MISSED'})"


def ratios(rows):
    lines = [("scenario", "target", "CPU ÷ PgBouncer", "tps ÷ PgBouncer", "p99 ÷ PgBouncer", "tps ÷ direct",
              "CPU ÷ before", "tps ÷ before")]
    for row in rows:
        if "tps" not in row["figures"] or not row["ratios"]:
            continue
        to = {base: row["ratios"].get(base, {}) for base in ("pgbouncer", "direct", "before")}
        # Budgets are ours alone.
        budget = scenarios.BY_NAME[row["scenario"]].budget if row["target"] == "pgtenant" else scenarios.Budget()
        lines.append((row["scenario"], row["target"], judged(to["pgbouncer"].get("cpu_us"), budget.cpu, True),
                      judged(to["pgbouncer"].get("tps"), budget.tps, False),
                      judged(to["pgbouncer"].get("p99_ms"), budget.p99, True), shown(to["direct"].get("tps"), 2),
                      shown(to["before"].get("cpu_us"), 2), shown(to["before"].get("tps"), 2)))
    return table(lines, 2) if len(lines) > 1 else ""


def publish(chosen, found, versions):
    rows = summarize(found)
    text = "\n\n".join(part for part in (absolute(rows), ratios(rows)) if part) + "\n"
    os.makedirs(chosen.out, exist_ok=True)
    kept = json.dumps({"rounds": found, "rows": rows}, indent=1)
    with open(os.path.join(chosen.out, "load.json"), "w") as file:
        file.write(kept + "\n")
    with open(os.path.join(chosen.out, "load.md"), "w") as file:
        file.write(text)
    print(text)
