//! Series on tenants' backups: as many whether there are three tenants or ten thousand.

use prometheus::{Gauge, IntGauge, Registry};

use super::{gauge, seconds_gauge};

/// Of the tenants that have a schedule.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BackupFigures {
    pub scheduled: i64,
    pub overdue: i64,
    pub unproven: i64,
    /// Seconds.
    pub oldest_proof: f64,
}

#[derive(Debug)]
pub(super) struct Families {
    scheduled: IntGauge,
    overdue: IntGauge,
    unproven: IntGauge,
    oldest_proof: Gauge,
}

impl Families {
    pub(super) fn register(r: &Registry) -> Families {
        Families {
            scheduled: gauge(r, "pgtenant_backup_tenants", "Tenants that have a schedule for their backups."),
            overdue: gauge(
                r,
                "pgtenant_backup_overdue_tenants",
                "Of these, the ones whose last backup is older than twice the time between two, or that have none.",
            ),
            unproven: gauge(
                r,
                "pgtenant_backup_unproven_tenants",
                "Of these, the ones of which no backup has ever been restored and compared.",
            ),
            oldest_proof: seconds_gauge(
                r,
                "pgtenant_backup_oldest_proof_seconds",
                "Since a backup was restored and compared, or else the first was made, of the tenant for which that is longest ago.",
            ),
        }
    }

    pub(super) fn set(&self, figures: &BackupFigures) {
        self.scheduled.set(figures.scheduled);
        self.overdue.set(figures.overdue);
        self.unproven.set(figures.unproven);
        self.oldest_proof.set(figures.oldest_proof);
    }
}
