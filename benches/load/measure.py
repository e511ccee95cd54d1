"""One round of one scenario: the pooler started anew, warmed, measured, and its work counted."""

import os
from dataclasses import replace

import busy
import counters

WARM_SECONDS = 1
COUNTED_SECONDS = 2


def cost_of(work, target, scene):
    """What `work` returns, and what it cost."""
    cost = counters.Cost(target, scene.postgres)
    figures = work()
    return figures, cost.since()


def counts_of(work, target):
    with counters.Perf(target.server.process.pid) as perf:
        figures = work()
    return figures, perf.counts


def each(figures, spent, came, spent_coming):
    """By transaction, without the logins before them: `came` is a run of as many clients with a transaction of each."""
    transactions = figures["transactions"] - (came["transactions"] if came else 0)
    return {name: (amount - spent_coming.get(name, 0)) / max(transactions, 1) for name, amount in spent.items()}


def timed(load, target, scene, seconds):
    """Has the clients work and adds what that cost to their figures."""
    load_average = os.getloadavg()[0]
    coming = cost_of(load.come, target, scene) if load.come else (None, {})
    figures, spent = cost_of(lambda: load.go(seconds), target, scene)
    one = each(figures, spent, *coming)
    figures["postgres_us"], figures["client_us"] = one["postgres"] * 1e6, one["client"] * 1e6
    # What is neither the pooler's, PostgreSQL's nor the clients' is whatever else ran on this machine meanwhile.
    others = spent["machine"] - spent["proxy"] - spent["postgres"] - spent["client"]
    figures["others_cores"] = max(others, 0) / seconds
    figures["steal_cores"] = spent["steal"] / seconds
    figures["load_average"] = load_average
    if target.server:
        figures["cpu_us"], figures["switches"] = one["proxy"] * 1e6, one["switches"]
    return figures


def counted(load, target):
    """System calls and instructions by transaction; in a run of its own, because counting slows the machine down."""
    coming = counts_of(load.come, target) if load.come else (None, {})
    figures, counts = counts_of(lambda: load.go(COUNTED_SECONDS), target)
    return each(figures, counts, *coming)


def figures_of(pooler, scenario, scene, seconds, first):
    """One round's figures as a dictionary; `first` also counts."""
    with scene.fresh(pooler, busy.names(scenario.tenants), scenario.backends or scene.backends) as target:
        figures = {}
        if target.server:
            figures = {"start_ms": target.server.start_seconds * 1000,
                       "start_kb": counters.resident_kb(target.server.process.pid)}
        if scenario.timed:
            with scenario.load(target, scenario, scene) as load:
                load.go(WARM_SECONDS)
                figures.update(timed(load, target, scene, seconds))
                if first and target.server:
                    figures.update(counted(load, target))
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
