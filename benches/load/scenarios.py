"""What is measured: each scenario's load, its clients and the budget that pgtenant has for it."""

from dataclasses import dataclass, field

import bulk
import crowd
import pgbench
import tenants


@dataclass(frozen=True)
class Budget:
    """Ratios to PgBouncer on the same work; None where nothing is promised."""

    cpu: float | None = None
    tps: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str  # for people: the plot and the documents
    load: object  # called with (target, seconds, scenario, scene), returns figures
    arguments: tuple = ()  # of pgbench
    clients: int | None = None  # None: as many as --clients
    backends: int | None = None  # of each pooler; None: as many as --backends
    encrypted: bool = False
    parameters: str = ""  # asked for at login, in libpq's `options`
    budget: Budget = field(default_factory=Budget)
    tenants: int = 1
    without: tuple = ()  # targets that cannot take it
    timed: bool = True  # otherwise the load itself says all there is to say
    rounds: int | None = None  # where fewer than --rounds will do
    usual: bool = True  # measured without being named


SELECT = ("-S", "-M")
# PgBouncer knows none of these parameters but TimeZone: a client would get another session than it asked for.
THREE_PARAMETERS = "-c TimeZone=Asia/Tokyo -c work_mem=5MB -c statement_timeout=30s"

ALL = [
    Scenario("select-simple", "-S simple", pgbench.run, (*SELECT, "simple"), budget=Budget(0.80, 1.1, 1.0)),
    Scenario("select-prepared", "-S prepared", pgbench.run, (*SELECT, "prepared"), budget=Budget(0.65, 1.2, 1.0)),
    Scenario("select-extended", "-S extended", pgbench.run, (*SELECT, "extended"), budget=Budget(0.70, 1.6, 0.8)),
    Scenario("tpcb-like", "tpcb-like", pgbench.run, ("-M", "simple"), budget=Budget(0.80, 1.2, 1.0)),
    Scenario("select-prepared-tls", "-S prepared, TLS", pgbench.run, (*SELECT, "prepared"), encrypted=True,
             budget=Budget(0.75, 1.3, 1.0)),
    Scenario("one-client", "one client, -S simple", pgbench.run, (*SELECT, "simple"), clients=1,
             budget=Budget(0.80, 1.3)),
    Scenario("result-10mb", "10 MB results", bulk.results, clients=4, budget=Budget(0.50, 1.7)),
    Scenario("copy-out", "COPY out, 10 MB", bulk.copy_out, clients=4),
    Scenario("copy-in", "COPY in, 10 MB", bulk.copy_in, clients=4),
    Scenario("pipeline", "pipelines of 10", pgbench.run, ("-M", "extended", "-f", "pipeline.sql")),
    Scenario("login", "login, SCRAM", pgbench.run, (*SELECT, "simple", "-C"), budget=Budget(1.0, 1.0)),
    Scenario("login-tls", "login, SCRAM + TLS", pgbench.run, (*SELECT, "simple", "-C"), encrypted=True,
             budget=Budget(0.8, 1.25)),
    Scenario("select-parameters", "-S simple, 3 parameters at login", pgbench.run, (*SELECT, "simple"),
             parameters=THREE_PARAMETERS, without=("pgbouncer",)),
    Scenario("many-clients", "2,000 clients, -S simple", pgbench.run, (*SELECT, "simple"), clients=2000,
             without=("direct",)),
    Scenario("tenants", "10,000 tenants, 100 active", tenants.run, clients=100, backends=100, tenants=10_000,
             without=("direct",)),
    Scenario("idle", "5,000 idle clients", crowd.run, clients=5000, timed=False, rounds=2, without=("direct",)),
    Scenario("idle-tls", "5,000 idle clients, TLS", crowd.run, clients=5000, encrypted=True, timed=False,
             rounds=2, without=("direct",)),
    Scenario("select-tls", "-S simple, TLS", pgbench.run, (*SELECT, "simple"), encrypted=True, usual=False),
]
BY_NAME = {scenario.name: scenario for scenario in ALL}
