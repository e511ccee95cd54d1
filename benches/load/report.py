"""Medians and ratios of all rounds, as one table for people and as JSON."""

import json
import os
import platform
from statistics import median

FIGURES = ("tps", "mean_ms", "p50_ms", "p99_ms", "cpu_us")
COLUMNS = ("scenario", "target", "tps", "mean ms", "p50 ms", "p99 ms", "CPU µs/tx", "tps ÷ PgBouncer",
           "CPU ÷ PgBouncer", "tps ÷ direct", "CPU ÷ before", "failed")


def medians(rounds):
    """The median of each figure over the rounds of one target; None where it was not measured."""
    result = {}
    for figure in FIGURES:
        values = [one[figure] for one in rounds if one[figure] is not None]
        result[figure] = median(values) if values else None
    result["failed"] = sum(one["failed"] for one in rounds)
    return result


def ratio(ours, theirs, figure):
    """The median of the ratios round by round: a slow minute of the machine meets both."""
    pairs = [(a[figure], b[figure]) for a, b in zip(ours or [], theirs or [])]
    pairs = [a / b for a, b in pairs if a is not None and b]
    return median(pairs) if pairs else None


def summarize(results):
    """`results[scenario][target]` is a list of rounds, or None where the target cannot run the scenario."""
    rows = []
    for scenario, targets in results.items():
        for target, rounds in targets.items():
            row = {"scenario": scenario, "target": target}
            row.update(medians(rounds) if rounds else dict.fromkeys((*FIGURES, "failed")))
            row["tps_to_pgbouncer"] = ratio(rounds, targets.get("pgbouncer"), "tps")
            row["cpu_to_pgbouncer"] = ratio(rounds, targets.get("pgbouncer"), "cpu_us")
            row["cpu_to_before"] = ratio(rounds, targets.get("before"), "cpu_us")
            row["tps_to_direct"] = ratio(rounds, targets.get("direct"), "tps")
            rows.append(row)
    return rows


def cells(row):
    def shown(value, digits):
        return "-" if value is None else f"{value:,.{digits}f}"

    return (row["scenario"], row["target"], shown(row["tps"], 0), shown(row["mean_ms"], 2), shown(row["p50_ms"], 2),
            shown(row["p99_ms"], 2), shown(row["cpu_us"], 1), shown(row["tps_to_pgbouncer"], 2),
            shown(row["cpu_to_pgbouncer"], 2), shown(row["tps_to_direct"], 2), shown(row["cpu_to_before"], 2),
            shown(row["failed"], 0))


def markdown(rows, about):
    lines = [COLUMNS, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]

    def written(line):
        names = [line[column].ljust(widths[column]) for column in (0, 1)]
        figures = [line[column].rjust(widths[column]) for column in range(2, len(COLUMNS))]
        return "| " + " | ".join(names + figures) + " |"

    rule = "|" + "|".join("-" * (width + 1) + ("-" if column < 2 else ":") for column, width in enumerate(widths)) + "|"
    table = [written(COLUMNS), rule, *(written(line) for line in lines[1:])]
    return "\n".join([about, "", *table, ""])


def describe(options, versions, memory):
    peaks = ", ".join(f"{name} {kb / 1024:.0f} MB" for name, kb in memory.items())
    return (f"{options.clients} clients on {options.backends} backends (direct: a backend for each client), "
            f"{options.threads} pgbench threads, {options.rounds} rounds of {options.seconds} s in rotating order, "
            f"scale {options.scale}; {os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}; "
            f"{', '.join(versions)}. Medians; ratios are medians of the rounds' ratios. Largest resident set: {peaks}.")


def write(folder, results, rows, text):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "load.json"), "w") as file:
        json.dump({"rounds": results, "medians": rows}, file, indent=1)
    with open(os.path.join(folder, "load.md"), "w") as file:
        file.write(text)
