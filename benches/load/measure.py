"""One round of one scenario: the pooler started anew, warmed, measured, and its work counted."""

import os
from dataclasses import replace

import busy
import counters

WARM_SECONDS = 1
COUNTED_SECONDS = 2


def each(amount, figures):
    return amount / max(figures["transactions"], 1)


def timed(go, target, scene, seconds):
    """Has the clients work and adds what that cost to their figures, by transaction."""
    load_average = os.getloadavg()[0]
    cost = counters.Cost(target, scene.postgres)
    figures = go(seconds)
    spent = cost.since()
    figures["postgres_us"] = each(spent["postgres"] * 1e6, figures)
    figures["client_us"] = each(spent["client"] * 1e6, figures)
    # What is neither the pooler's, PostgreSQL's nor the clients' is whatever else ran on this machine meanwhile.
    others = spent["machine"] - spent["proxy"] - spent["postgres"] - spent["client"]
    figures["others_cores"] = max(others, 0) / seconds
    figures["load_average"] = load_average
    figures["steal_cores"] = spent["steal"] / seconds
    if target.server:
        figures["cpu_us"] = each(spent["proxy"] * 1e6, figures)
        figures["switches"] = each(spent["switches"], figures)
    return figures


def counted(go, target):
    """System calls and instructions by transaction; in a run of its own, because counting slows the machine down."""
    with counters.Perf(target.server.process.pid) as perf:
        figures = go(COUNTED_SECONDS)
    return {name: each(count, figures) for name, count in perf.counts.items()}


def figures_of(pooler, scenario, scene, seconds, first):
    """One round's figures as a dictionary; `first` also counts."""
    with scene.fresh(pooler, busy.names(scenario.tenants), scenario.backends or scene.backends) as target:
        figures = {}
        if target.server:
            figures = {"start_ms": target.server.start_seconds * 1000,
                       "start_kb": counters.resident_kb(target.server.process.pid)}
        if scenario.timed:
            with scenario.load(target, scenario, scene) as go:
                go(WARM_SECONDS)
                figures.update(timed(go, target, scene, seconds))
                if first and target.server:
                    figures.update(counted(go, target))
        else:
            figures.update(scenario.load(target, scenario))
        if target.server:
            figures["peak_kb"] = target.server.resident_kb()
        return figures


def round_of(pooler, scenario, scene, seconds, first):
    figures = figures_of(pooler, scenario, scene, seconds, first)
    if scenario.tenants > 1:
        one = figures_of(pooler, replace(scenario, tenants=1), scene, seconds, False)
        figures["cpu_to_one_tenant"] = figures["cpu_us"] / one["cpu_us"] if one["cpu_us"] else None
    return figures
