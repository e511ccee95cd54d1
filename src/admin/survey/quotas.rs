//! A tenant's limits and how much of each is in use, for the page and for a scrape.

use std::sync::atomic::Ordering::Relaxed;

use crate::pool::Counts;
use crate::quota::QuotaLine;
use crate::tenant::Tenant;

/// All of them. Idle backends stand in nobody's way, and are not counted.
pub fn quotas(tenant: &Tenant, counts: Counts) -> Vec<QuotaLine> {
    tenant.quotas(counts.active + counts.connecting)
}

/// The use of the one closest to its limit: 0 where nothing is used, 1 where one is used up. Of a tenant without clients
/// and busy backends nothing is looked at: most of thousands are such.
pub fn highest_use(tenant: &Tenant, counts: Counts) -> f64 {
    let rests = tenant.stats.clients.load(Relaxed) == 0 && counts.active + counts.connecting == 0;
    if rests { 0.0 } else { highest_of(&quotas(tenant, counts)) }
}

fn highest_of(quotas: &[QuotaLine]) -> f64 {
    quotas.iter().filter_map(QuotaLine::ratio).filter(|ratio| ratio.is_finite()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_use_is_that_of_the_closest_limit() {
        let quota = |limit, used| QuotaLine { quota: "", unit: "", limit, used, refused: 0 };
        assert_eq!(highest_of(&[]), 0.0);
        let quotas =
            [quota(Some(10.0), Some(5.0)), quota(Some(4.0), Some(3.0)), quota(None, Some(9.0)), quota(Some(1.0), None)];
        assert_eq!(highest_of(&quotas), 0.75);
        assert_eq!(highest_of(&[quota(Some(0.0), Some(0.0))]), 0.0, "a limit of 0 is no division");
    }
}
