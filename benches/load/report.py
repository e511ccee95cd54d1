"""Medians, spreads and ratios of all rounds, as JSON, as tables for people, and as a plot."""

import json
import os
import platform
from statistics import median

import plot
import tables

RATIOS = ("cpu_us", "tps", "p99_ms")


def progress(figures):
    if "tps" not in figures:
        return f"{figures['kb_idle']:8.1f} KB a client, {figures['kb_used']:.1f} after a query"
    cpu = f", {figures['cpu_us']:.1f} µs CPU" if "cpu_us" in figures else ""
    return f"{figures['tps']:10,.1f} tps{cpu}"


def summary(rounds):
    """Median, least and greatest of each figure over the rounds of one target."""
    found = {}
    for one in rounds or []:
        for figure, value in one.items():
            if value is not None:
                found.setdefault(figure, []).append(value)
    return {figure: {"median": median(all), "min": min(all), "max": max(all)} for figure, all in found.items()}


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
                if base in targets and base != target and (base != "before" or target == "pgtenant"):
                    row["ratios"][base] = {figure: ratio(rounds, targets[base], figure) for figure in RATIOS}
            rows.append(row)
    return rows


def failed(found):
    return sum(one["failed"] for targets in found.values() for rounds in targets.values() for one in rounds or [])


def describe(chosen):
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release().split('-')[0]}"
    versions = "; ".join(pooler.about() for pooler in chosen.poolers)
    return (f"{chosen.clients} clients on {chosen.backends} backends (direct: a backend for each client) where the "
            f"scenario has no numbers of its own; at most {chosen.rounds} rounds of {chosen.seconds} s in "
            f"rotating order, each with a pooler started anew; pgbench with one thread, scale {chosen.scale}; "
            f"{machine}; {versions}. Medians, in brackets the least and the greatest; ratios are "
            f"medians of the rounds' ratios.")


def publish(chosen, found, failures):
    """Writes the files with what there is so far; returns the JSON and the tables as text."""
    rows, about = summarize(found), describe(chosen)
    kept = json.dumps({"about": about, "rows": rows, "rounds": found, "failures": failures}, indent=1) + "\n"
    text = "\n\n".join([about, *tables.all_of(rows), *(f"Left out: {failure}" for failure in failures)]) + "\n"
    subtitle = (f"{chosen.clients} clients, {chosen.backends} backends, {os.cpu_count()} cores; medians of "
                f"interleaved rounds")
    files = {"load.json": kept, "load.md": text, "load.svg": plot.drawn(rows, subtitle)}
    if chosen.json not in (None, "-"):
        files[os.path.abspath(chosen.json)] = kept
    for folder, names in ((chosen.out, files), (chosen.docs, ("load.md", "load.svg"))):
        for name in names if folder else ():
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, name), "w") as file:
                file.write(files[name])
    return kept, text
