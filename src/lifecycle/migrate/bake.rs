//! After a wave: what the proxies' own figures say of its tenants, and whether the next wave may begin.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::admin::ask::Endpoint;
use crate::config::BakeLimits;
use crate::lifecycle::several;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// Tenants of a wave that are asked about.
const MOST_ASKED: usize = 500;
const POLL: Duration = Duration::from_secs(1);
/// Counters of one tenant, of all proxies together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    pub queries: f64,
    pub errors: f64,
    /// Seconds that backends were busy.
    pub busy: f64,
}

/// By tenant.
pub type Sample = BTreeMap<String, Figures>;

/// What came of watching a wave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// With the figures.
    Good(String),
    /// And why.
    NotWatched(String),
    Bad(String),
}

/// The proxies in front of the tenants.
#[derive(Clone)]
pub struct Watch {
    endpoints: Arc<[Endpoint]>,
    limits: BakeLimits,
}

impl Watch {
    pub fn new(endpoints: Vec<Endpoint>, limits: BakeLimits) -> Watch {
        Watch { endpoints: endpoints.into(), limits }
    }

    /// The tenants' counters as they are now.
    ///
    /// # Errors
    /// A proxy does not answer.
    pub async fn sample(&self, tenants: &[String]) -> Result<Sample, String> {
        if self.endpoints.is_empty() {
            return Err("no proxy's HTTP endpoint is configured".to_owned());
        }
        let tenants: Vec<String> = tenants.iter().take(MOST_ASKED).cloned().collect();
        self.blocking(move |endpoints| {
            let mut sample = Sample::new();
            for endpoint in endpoints {
                for tenant in &tenants {
                    let asked = endpoint.get(&format!("/metrics/tenant/{tenant}"), MAX_ANSWER);
                    let answer = asked.map_err(|error| format!("{error:#}"))?;
                    // This proxy has not got the tenant.
                    if answer.status == 200 {
                        add(sample.entry(tenant.clone()).or_default(), &answer.body);
                    }
                }
            }
            Ok(sample)
        })
        .await
    }

    /// Tells the proxies that a tenant's schema has changed over a connection that they do not see.
    ///
    /// # Errors
    /// A proxy was not reached, or did not allow it.
    pub async fn schema_changed(&self, tenant: &str) -> Result<(), String> {
        let path = format!("/api/v1/tenants/{tenant}/schema-changed");
        self.blocking(move |endpoints| {
            for endpoint in endpoints {
                let answer = endpoint.post(&path, MAX_ANSWER).map_err(|error| format!("{error:#}"))?;
                // 404: this proxy has not got the tenant, or not yet.
                if !matches!(answer.status, 204 | 404) {
                    let why = answer.body.lines().last().unwrap_or_default().to_owned();
                    return Err(format!("{} answers {} {why}", endpoint.url, answer.status));
                }
            }
            Ok(())
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&[Endpoint]) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let endpoints = self.endpoints.clone();
        let asked = tokio::task::spawn_blocking(move || ask(&endpoints)).await;
        asked.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Watches for so long, or until it is clear that something is wrong. `before` is from before the wave.
    pub async fn bake(&self, tenants: &[String], before: Result<Sample, String>, time: Duration) -> Verdict {
        let begun = Instant::now();
        let before = match before {
            Ok(before) => before,
            Err(why) => {
                // Other people's monitoring gets its time.
                tokio::time::sleep(time).await;
                return Verdict::NotWatched(why);
            }
        };
        let start = match self.sample(tenants).await {
            Ok(start) => start,
            Err(why) => return Verdict::Bad(format!("the proxy has stopped answering: {why}")),
        };
        loop {
            let left = time.saturating_sub(begun.elapsed());
            tokio::time::sleep(left.min(POLL)).await;
            let now = match self.sample(tenants).await {
                Ok(now) => now,
                Err(why) => return Verdict::Bad(format!("the proxy has stopped answering: {why}")),
            };
            let judged = judge(&self.limits, &before, &start, &now);
            match judged {
                Verdict::Good(_) if begun.elapsed() < time => {}
                verdict => return verdict,
            }
        }
    }
}

/// Adds what a page of metrics says.
fn add(figures: &mut Figures, page: &str) {
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        match series.split('{').next().unwrap_or_default() {
            "pgtenant_tenant_queries_total" => figures.queries += value,
            "pgtenant_tenant_errors_total" => figures.errors += value,
            "pgtenant_tenant_query_seconds_total" => figures.busy += value,
            _ => {}
        }
    }
}

impl Figures {
    fn since(self, start: Figures) -> Figures {
        // A proxy that was started anew counts from 0.
        let since = |now: f64, then: f64| if now >= then { now - then } else { now };
        Figures {
            queries: since(self.queries, start.queries),
            errors: since(self.errors, start.errors),
            busy: since(self.busy, start.busy),
        }
    }

    /// Errors of each query.
    fn failing(self) -> f64 {
        self.errors / self.queries.max(1.0)
    }

    /// Seconds of a query.
    fn time(self) -> f64 {
        self.busy / self.queries.max(1.0)
    }

    fn plus(self, other: Figures) -> Figures {
        Figures {
            queries: self.queries + other.queries,
            errors: self.errors + other.errors,
            busy: self.busy + other.busy,
        }
    }

    /// What is wrong with these beside those from before.
    fn worse(self, before: Figures, limits: &BakeLimits) -> Option<String> {
        if self.errors >= f64::from(limits.min_errors) && self.failing() > before.failing() + limits.errors {
            let (share, was) = (self.failing() * 100.0, before.failing() * 100.0);
            return Some(format!(
                "{} errors in {} queries, {share:.1} % (before: {was:.1} %)",
                self.errors, self.queries
            ));
        }
        let fewest = f64::from(limits.min_queries);
        let enough = self.queries >= fewest && before.queries >= fewest;
        if enough && self.time() > before.time() * limits.slowdown + limits.slack.as_secs_f64() {
            let (time, was) = (self.time() * 1000.0, before.time() * 1000.0);
            return Some(format!("a query takes {time:.1} ms (before: {was:.1} ms)"));
        }
        None
    }
}

/// Looks at every tenant, and at all of them together. Pure.
fn judge(limits: &BakeLimits, before: &Sample, start: &Sample, now: &Sample) -> Verdict {
    let (mut sum, mut sum_before) = (Figures::default(), Figures::default());
    for (tenant, now) in now {
        let was = before.get(tenant).copied().unwrap_or_default();
        let figures = now.since(start.get(tenant).copied().unwrap_or_default());
        if let Some(what) = figures.worse(was, limits) {
            return Verdict::Bad(format!("tenant {tenant}: {what}"));
        }
        (sum, sum_before) = (sum.plus(figures), sum_before.plus(was));
    }
    if let Some(what) = sum.worse(sum_before, limits) {
        return Verdict::Bad(format!("all tenants of the wave together: {what}"));
    }
    if sum.queries == 0.0 {
        return Verdict::Good(format!("{} watched, nobody has asked them anything", several(now.len(), "tenant")));
    }
    Verdict::Good(format!(
        "{} watched: {} queries, {} errors, {:.1} ms a query (before: {:.1} ms)",
        several(now.len(), "tenant"),
        sum.queries,
        sum.errors,
        sum.time() * 1000.0,
        sum_before.time() * 1000.0
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(queries: f64, errors: f64, busy: f64) -> Sample {
        Sample::from([("acme".to_owned(), Figures { queries, errors, busy })])
    }

    fn judged(before: (f64, f64, f64), after: (f64, f64, f64)) -> Verdict {
        let (queries, errors, busy) = before;
        let start = sample(queries, errors, busy);
        judge(&BakeLimits::default(), &start, &start, &sample(queries + after.0, errors + after.1, busy + after.2))
    }

    #[test]
    fn a_wave_that_fails_or_is_slow_is_found() {
        let usual = (1000.0, 10.0, 1.0);
        assert!(matches!(judged(usual, (100.0, 1.0, 0.1)), Verdict::Good(_)));
        assert!(matches!(judged(usual, (0.0, 0.0, 0.0)), Verdict::Good(text) if text.contains("nobody has asked")));
        assert!(
            matches!(judged(usual, (100.0, 10.0, 0.1)), Verdict::Bad(text) if text.contains("10.0 % (before: 1.0 %)"))
        );
        assert!(matches!(judged(usual, (100.0, 4.0, 0.1)), Verdict::Good(_)), "too few to say");
        assert!(
            matches!(judged(usual, (100.0, 0.0, 2.0)), Verdict::Bad(text) if text.contains("20.0 ms (before: 1.0 ms)"))
        );
        assert!(matches!(judged(usual, (10.0, 0.0, 2.0)), Verdict::Good(_)), "too few to say");
        assert!(matches!(judged((0.0, 0.0, 0.0), (50.0, 50.0, 1.0)), Verdict::Bad(_)));
    }

    #[test]
    fn the_limits_are_those_of_the_configuration() {
        let strict = BakeLimits { errors: 0.0, min_errors: 1, slowdown: 1.0, slack: Duration::ZERO, min_queries: 1 };
        let before = sample(1000.0, 0.0, 1.0);
        let after = |errors, busy| judge(&strict, &before, &before, &sample(1010.0, errors, 1.0 + busy));
        assert!(matches!(after(1.0, 0.01), Verdict::Bad(text) if text.contains("1 errors in 10 queries")));
        assert!(matches!(after(0.0, 0.02), Verdict::Bad(text) if text.contains("2.0 ms (before: 1.0 ms)")));
        assert!(matches!(after(0.0, 0.005), Verdict::Good(_)));
    }

    #[test]
    fn a_proxy_that_began_anew_counts_from_nothing() {
        let before = sample(1000.0, 100.0, 1.0);
        let now = sample(50.0, 2.0, 0.1);
        assert!(
            matches!(judge(&BakeLimits::default(), &before, &before, &now), Verdict::Good(text) if text.contains("50 queries, 2 errors"))
        );
    }

    #[test]
    fn a_page_of_metrics_is_read() {
        let page = "# HELP x\npgtenant_tenant_queries_total{tenant=\"acme\",region=\"\"} 12\n\
                    pgtenant_tenant_errors_total{tenant=\"acme\"} 3\npgtenant_tenant_query_seconds_total{} 0.5\nother 7\n";
        let mut figures = Figures::default();
        add(&mut figures, page);
        assert_eq!(figures, Figures { queries: 12.0, errors: 3.0, busy: 0.5 });
    }
}
