"""The figures as Markdown tables."""

import scenarios

# Figure, column, factor, digits, whether least and greatest are shown.
COLUMNS = (
    ("tps", "tps", 1, 0, True), ("p50_ms", "p50 ms", 1, 2, False), ("p99_ms", "p99 ms", 1, 2, True),
    ("p999_ms", "p99.9 ms", 1, 2, False), ("mean_ms", "mean ms", 1, 2, False), ("cpu_us", "CPU µs", 1, 1, True),
    ("postgres_us", "PostgreSQL µs", 1, 1, False), ("syscalls", "system calls", 1, 1, False),
    ("switches", "switches", 1, 2, False), ("instructions", "instructions", 1, 0, False),
    ("peak_kb", "peak MB", 1 / 1024, 1, False),
)


def shown(value, digits):
    return "-" if value is None else f"{value:,.{digits}f}"


def spread(found, factor=1, digits=1, ends=True):
    """A figure's median, with its least and greatest where there is more than one."""
    if not found:
        return "-"
    middle, least, most = (shown(found[name] * factor, digits) for name in ("median", "min", "max"))
    return f"{middle} ({least}–{most})" if ends and least != most else middle


def middle(row, figure):
    found = row["figures"].get(figure)
    return found and found["median"]


def judged(value, budget, less=True, digits=2):
    """A value with its budget, and whether that is met."""
    if value is None or budget is None:
        return shown(value, digits)
    met = value <= budget if less else value >= budget
    return f"{shown(value, digits)} ({'≤' if less else '≥'} {budget:,g} {'met' if met else 'MISSED'})"


def budget(row):
    """Budgets are ours alone."""
    return scenarios.BY_NAME[row["scenario"]].budget if row["target"] == "pgtenant" else scenarios.Budget()


def table(title, head, lines):
    """Nothing without lines; scenario and target are to the left, figures to the right."""
    if not lines:
        return []
    lines = [head, *lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    names = sum(column in ("scenario", "target") for column in head)

    def written(line):
        cells = (cell.ljust(width) if column < names else cell.rjust(width)
                 for column, (cell, width) in enumerate(zip(line, widths)))
        return f"| {' | '.join(cells)} |"

    rule = "".join("-" * (width + 1) + ("-|" if column < names else ":|") for column, width in enumerate(widths))
    return ["\n".join([f"**{title}**", "", written(head), f"|{rule}", *map(written, lines[1:])])]


def transactions(rows):
    """What one transaction takes."""
    head = ("scenario", "target", *(column for _, column, *_ in COLUMNS))
    lines = [(row["scenario"], row["target"], *(spread(row["figures"].get(figure), *shape)
              for figure, _, *shape in COLUMNS)) for row in rows if "tps" in row["figures"]]
    return table("Each transaction", head, lines)


def ratios(rows):
    head = ("scenario", "target", "CPU ÷ PgBouncer", "tps ÷ PgBouncer", "p99 ÷ PgBouncer", "tps ÷ direct",
            "CPU ÷ before", "tps ÷ before")
    lines = []
    for row in rows:
        pgbouncer, direct, before = (row["ratios"].get(base, {}) for base in ("pgbouncer", "direct", "before"))
        if "tps" not in row["figures"] or row["target"] == "direct" or not row["ratios"]:
            continue
        ours = budget(row)
        lines.append((row["scenario"], row["target"], judged(pgbouncer.get("cpu_us"), ours.cpu),
                      judged(pgbouncer.get("tps"), ours.tps, less=False), judged(pgbouncer.get("p99_ms"), ours.p99),
                      shown(direct.get("tps"), 2), shown(before.get("cpu_us"), 2), shown(before.get("tps"), 2)))
    return table("Ratios", head, lines)


def idle(rows):
    head = ("scenario", "target", "KB a client", "KB after one query", "logins a second")
    lines = [(row["scenario"], row["target"], spread(row["figures"]["kb_idle"]),
              judged(middle(row, "kb_used"), budget(row).kilobytes, digits=1),
              spread(row["figures"]["logins_per_second"], digits=0)) for row in rows if "kb_used" in row["figures"]]
    return table("Idle clients", head, lines)


def tenants(rows):
    head = ("scenario", "target", "start ms", "MB after the start", "peak MB", "CPU ÷ one tenant")
    lines = [(row["scenario"], row["target"], judged(middle(row, "start_ms"), budget(row).start_ms, digits=0),
              shown(middle(row, "start_kb") / 1024, 1), judged(middle(row, "peak_kb") / 1024, budget(row).megabytes,
              digits=1), judged(middle(row, "cpu_to_one_tenant"), budget(row).to_one_tenant))
             for row in rows if "cpu_to_one_tenant" in row["figures"]]
    return table("Many tenants", head, lines)


def machine(rows):
    """What else ran: cores in use by processes that are not the benchmark's, over all targets of a scenario."""
    lines = []
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        own = [row["figures"] for row in rows if row["scenario"] == scenario and "others_cores" in row["figures"]]
        if own:
            cells = []
            for figure in ("others_cores", "steal_cores", "load_average"):
                found = [one[figure] for one in own]
                cells.append(f"{min(one['min'] for one in found):.2f}–{max(one['max'] for one in found):.2f}")
            lines.append((scenario, *cells))
    return table("The rest of the machine meanwhile", ("scenario", "cores busy with others", "cores taken by the host",
                                                        "load average"), lines)


def all_of(rows):
    return [*transactions(rows), *ratios(rows), *idle(rows), *tenants(rows), *machine(rows)]
