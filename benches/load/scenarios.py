"""What is measured: each scenario's load, its clients and the budget that pgtenant has for it."""

from dataclasses import dataclass, field

import bulk
import busy
import crowd
import pgbench


@dataclass(frozen=True)
class Budget:
    """The first three are ratios to PgBouncer on the same work; None where nothing is promised."""

    cpu: float | None = None
    tps: float | None = None
    p99: float | None = None
    kilobytes: float | None = None  # of each idle client
    start_ms: float | None = None
    megabytes: float | None = None  # at most, of the whole process
    to_one_tenant: float | None = None  # CPU by transaction with all tenants, to that with a single one


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str  # for people: the plot and the documents
    load: object  # a context manager of (target, scenario, scene) that gives a servers.Load
    arguments: tuple = ()  # of pgbench, or the query
    clients: int | None = None  # None: as many as --clients
    backends: int | None = None  # of each pooler; None: as many as --backends
    encrypted: bool = False
    parameters: str = ""  # asked for at login, in libpq's `options`
    budget: Budget = field(default_factory=Budget)
    tenants: int = 1
    without: tuple = ()  # targets that cannot take it
    timed: bool = True  # otherwise `load` is a function that says all there is to say
    rounds: int | None = None  # where fewer than --rounds will do
    usual: bool = True  # measured without being named


SELECT = ("-S", "-M")
ONE_ROW = "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;"
# PgBouncer knows none of these parameters but TimeZone: a client would get another session than it asked for.
THREE_PARAMETERS = "-c TimeZone=Asia/Tokyo -c work_mem=5MB -c statement_timeout=30s"

ALL = [
    Scenario("select-simple", "-S simple", pgbench.load, (*SELECT, "simple"), budget=Budget(0.80, 1.1, 1.0)),
    Scenario("select-prepared", "-S prepared", pgbench.load, (*SELECT, "prepared"), budget=Budget(0.65, 1.2, 1.0)),
    Scenario("select-extended", "-S extended", pgbench.load, (*SELECT, "extended"), budget=Budget(0.70, 1.6, 0.8)),
    Scenario("tpcb-like", "tpcb-like", pgbench.load, ("-M", "simple"), budget=Budget(0.80, 1.2, 1.0)),
    Scenario("select-prepared-tls", "-S prepared, TLS", pgbench.load, (*SELECT, "prepared"), encrypted=True,
             budget=Budget(0.75, 1.3, 1.0)),
    Scenario("one-client", "one client, -S simple", pgbench.load, (*SELECT, "simple"), clients=1,
             budget=Budget(0.80, 1.3)),
    Scenario("result-10mb", "10 MB results", bulk.results, clients=4, budget=Budget(0.50, 1.7)),
    Scenario("copy-out", "COPY out, 10 MB", bulk.copy_out, clients=4),
    Scenario("copy-in", "COPY in, 10 MB", bulk.copy_in, clients=4),
    Scenario("pipeline", "pipelines of 10", pgbench.load, ("-M", "extended", "-f", "pipeline.sql")),
    Scenario("login", "login, SCRAM", pgbench.load, (*SELECT, "simple", "-C"), budget=Budget(1.0, 1.0)),
    Scenario("login-tls", "login, SCRAM + TLS", pgbench.load, (*SELECT, "simple", "-C"), encrypted=True,
             budget=Budget(0.8, 1.25)),
    Scenario("select-parameters", "-S simple, 3 parameters at login", pgbench.load, (*SELECT, "simple"),
             parameters=THREE_PARAMETERS, without=("pgbouncer",)),
    Scenario("many-clients", "2,000 clients, -S simple", busy.load, (ONE_ROW,), clients=2000, without=("direct",)),
    # The tenants' databases are empty.
    Scenario("tenants", "10,000 tenants, 100 active", busy.load, ("SELECT 1234567 AS abalance",), clients=100,
             backends=100, tenants=10_000,
             budget=Budget(start_ms=2000, megabytes=60, to_one_tenant=1.05), without=("direct",)),
    Scenario("idle", "5,000 idle clients", crowd.run, clients=5000, timed=False, rounds=2,
             budget=Budget(kilobytes=2), without=("direct",)),
    Scenario("idle-tls", "5,000 idle clients, TLS", crowd.run, clients=5000, encrypted=True, timed=False,
             rounds=2, budget=Budget(kilobytes=10), without=("direct",)),
    Scenario("select-tls", "-S simple, TLS", pgbench.load, (*SELECT, "simple"), encrypted=True, usual=False),
]
BY_NAME = {scenario.name: scenario for scenario in ALL}
