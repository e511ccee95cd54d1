//! The end of a transaction: what it left on the backend is asked for, and the backend goes back, or stays with its client.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{End, Serving};
use crate::backend::{Backend, CancelKey, CommandError, Doubt, Pins, Settings};
use crate::metrics::{Label, Pin, QuotaName};
use crate::pool::{Checkout, Pool};
use crate::sessions::{PinnedTo, Session};
use crate::wire::{HEADER, PgError};

/// A client that holds its backend, counted until it is dropped.
pub(super) struct Pinned {
    pub pins: Pins,
    pub since: Instant,
    pool: Arc<Pool>,
    session: Arc<Session>,
}

impl Pinned {
    fn new(pool: &Arc<Pool>, session: &Arc<Session>) -> Self {
        pool.tenant.stats.pins.fetch_add(1, Ordering::Relaxed);
        Pinned { pins: Pins::NONE, since: Instant::now(), pool: pool.clone(), session: session.clone() }
    }

    fn set(&mut self, pins: Pins, backend: &Arc<CancelKey>) {
        if self.pins != pins {
            self.session.pin(Some(PinnedTo { pins, since: self.since, backend: backend.clone() }));
            self.count(pins);
        }
    }

    fn count(&mut self, pins: Pins) {
        for pin in Pin::ALL.iter().copied() {
            let change = i64::from(pins.contains(pin)) - i64::from(self.pins.contains(pin));
            if change != 0 {
                self.pool.metrics().pinned(pin, change);
            }
        }
        self.pins = pins;
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.session.pin(None);
        self.count(Pins::NONE);
        self.pool.tenant.stats.pins.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Serving {
    /// The backend is free: gives it back, or keeps it with what the client has on it. `now` is the end of its last answer.
    pub(super) async fn settle(&mut self, mut checkout: Checkout, now: Instant) -> Result<(), End> {
        let pins = match self.census(&mut checkout).await {
            Ok(pins) => pins,
            Err(error) => return Err(End::BackendLost(error.to_string())),
        };
        if std::mem::take(&mut checkout.state.has_news) {
            let parameters = self.session.pool.share_parameters(&checkout.state.parameters);
            if self.flow.state.told == parameters {
                self.flow.state.told = parameters.clone();
            }
            checkout.state.parameters = parameters;
        }
        for frame in checkout.take_notifications() {
            if !self.flow.state.channels.hears(frame.get(HEADER..).unwrap_or_default()) {
                self.client.queue(&frame);
            }
        }
        self.flow.state.held = !pins.is_empty();
        if pins.is_empty() {
            self.pinned = None;
            checkout.release_at(now);
            return Ok(());
        }
        let (pool, session) = (&self.session.pool, &self.session.registration);
        self.pinned.get_or_insert_with(|| Pinned::new(pool, session)).set(pins, &checkout.cancel);
        if let Some(error) = self.too_many_pins() {
            Box::pin(self.leave(checkout)).await;
            return Err(End::Told(error));
        }
        self.session.kept = Some(checkout);
        Ok(())
    }

    /// Asks for what is in doubt, and takes over what is found. Gives what ties the client to this backend.
    async fn census(&mut self, backend: &mut Backend) -> Result<Pins, CommandError> {
        let state = &mut self.flow.state;
        if self.session.tenant.current().pool.pin_check {
            state.doubt.pins = Pins::ASKABLE;
            state.doubt.all_parameters = true;
        }
        let mut pins = self.pinned.as_ref().map_or(Pins::NONE, |pinned| pinned.pins & Pins::ASKABLE);
        if !state.doubt.is_empty() {
            let doubt = std::mem::take(&mut state.doubt);
            match Box::pin(backend.census(&doubt)).await {
                Ok(census) => {
                    pins = pins.without(doubt.pins) | census.pins;
                    self.take_over(backend, census.settings, &doubt);
                }
                Err(CommandError::Refused(error)) => {
                    tracing::warn!(tenant = self.session.tenant.id.as_str(), %error, "session state unknown: pinned");
                    pins.insert(Pin::Unknown);
                    state.doubt = doubt;
                }
                Err(error) => return Err(error),
            }
        }
        // Custom parameters whose names only a block of code knows: lost at the next change of backends, but never seen.
        backend.state.dirty |= std::mem::take(&mut self.flow.state.opaque);
        if self.flow.has_unshared() {
            pins.insert(Pin::Statement);
        }
        Ok(pins | self.flow.state.certain)
    }

    /// The client has the parameters that were found; and those that it began with, where something has put them back to
    /// the login's.
    fn take_over(&mut self, backend: &mut Backend, mut found: Settings, doubt: &Doubt) {
        let pool = &self.session.pool;
        let state = &mut self.flow.state;
        state.told = backend.state.parameters.clone();
        if doubt.parameters.is_empty() && !doubt.all_parameters {
            return;
        }
        for name in ["role", "session_authorization"].into_iter().filter(|name| state.startup.get(name).is_none()) {
            if found.get(name).is_some_and(|value| backend.is_baseline(name, value)) {
                found.remove(name);
            }
        }
        // Empty where the client wants it to be, or for good.
        let before = backend.in_force.clone();
        let is_named = |name: &str| doubt.parameters.iter().any(|it| it == name);
        let emptied =
            |name: &str| state.startup.get(name).is_some() && (is_named(name) || before.get(name) == Some(""));
        found.forget_empty_customs(|name| !emptied(name));
        backend.in_force = pool.share_settings(&Arc::new(found));
        let mut wanted = (*backend.in_force).clone();
        for (name, value) in state.startup.iter().filter(|(name, _)| backend.in_force.get(name).is_none()) {
            wanted.set(name, value);
        }
        self.without_restriction(&mut wanted);
        self.session.settings = self.session.pool.share_settings(&Arc::new(wanted));
        self.flow.state.settled(self.session.settings.parse_context());
    }

    /// What a client is told that pinned one backend too many.
    fn too_many_pins(&self) -> Option<PgError> {
        let max = self.session.tenant.current().pool.max_pins?;
        let now = self.session.tenant.stats.pins.load(Ordering::Relaxed);
        (now > i64::from(max)).then(|| {
            self.session.tenant.stats.refuse(QuotaName::MaxPins);
            let error = PgError::fatal("53400", "too many sessions of this tenant keep a backend for themselves");
            error.with_detail(self.pins_of_this()).with_hint(format!(
                "pool.max_pins is {max}. Avoid such session state, end it sooner, or ask for pool mode session."
            ))
        })
    }

    /// What a client is told that kept its backend too long.
    pub(super) fn pinned_too_long(&self) -> PgError {
        self.session.tenant.stats.refuse(QuotaName::MaxPinTime);
        let error = PgError::fatal("53400", "the session has kept a backend for itself for too long");
        error.with_detail(self.pins_of_this()).with_hint("See pool.max_pin_time; end such session state sooner.")
    }

    fn pins_of_this(&self) -> String {
        let pins = self.pinned.as_ref().map_or(Pins::NONE, |pinned| pinned.pins);
        let names: Vec<&str> = pins.iter().map(Label::text).collect();
        format!("What cannot be moved to another backend: {}.", names.join(", "))
    }
}
