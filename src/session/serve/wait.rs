//! Waiting for leave to go on: cancelled by the client, cut short by an order, told by a NOTICE after a while.

use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Instant;

use bytes::BytesMut;

use super::{End, farewell};
use crate::net::Endpoint;
use crate::pool::Patience;
use crate::session::welcome::Welcomed;
use crate::sessions::WaitOver;
use crate::wire::{PgError, messages, sqlstate};

/// Why a request gets no backend.
pub(super) enum NoBackend {
    /// The client is told, and the session goes on.
    Refused(PgError),
    End(End),
}

/// What somebody waits for, unless the wait is cancelled, or the session told to end.
pub(super) async fn unless_over<T>(session: &Welcomed, wanted: impl Future<Output = T>) -> Result<T, NoBackend> {
    let mut wanted = std::pin::pin!(wanted);
    let mut waits = false;
    poll_fn(|cx| {
        if let Poll::Ready(got) = wanted.as_mut().poll(cx) {
            return Poll::Ready(Ok(got));
        }
        poll_over(session, &mut waits, cx).map(Err)
    })
    .await
}

fn poll_over(session: &Welcomed, waits: &mut bool, cx: &mut std::task::Context<'_>) -> Poll<NoBackend> {
    let registration = &session.registration;
    if !std::mem::replace(waits, true) {
        registration.waits();
    }
    registration.poll_wait_is_over(cx).map(|over| match over {
        WaitOver::Cancelled => {
            NoBackend::Refused(PgError::error(sqlstate::QUERY_CANCELED, "canceling statement due to user request"))
        }
        WaitOver::Ended => NoBackend::End(End::Told(farewell(session))),
    })
}

/// What a client waits for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cause {
    Backend,
    Quota,
    Pause,
}

/// Tells a client that waits for long, once for each request.
#[derive(Debug, Default)]
pub(super) struct Notice {
    timer: Patience,
    /// Since when the present request waits.
    since: Option<Instant>,
    told: bool,
}

impl Notice {
    /// The next request.
    pub fn reset(&mut self) {
        (self.since, self.told) = (None, false);
    }

    fn poll(&mut self, session: &Welcomed, cause: Cause, client: &mut Endpoint, cx: &mut std::task::Context<'_>) {
        if self.told {
            return;
        }
        let Some(after) = session.tenant.current().quota.notice_after else { return };
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.timer.poll_over(since + after, cx).is_ready() {
            self.told = true;
            let mut notice = BytesMut::new();
            let (text, detail) = words(session, cause);
            messages::notice(&mut notice, text, &detail);
            client.queue(&notice);
        }
    }
}

fn words(session: &Welcomed, cause: Cause) -> (&'static str, String) {
    let tenant = &session.tenant;
    match cause {
        Cause::Backend => {
            let waiting = tenant.stats.waiting.load(std::sync::atomic::Ordering::Relaxed).saturating_sub(1);
            let max = tenant.current().pool.max_backends;
            let detail = format!("The tenant may have {max} backends; {waiting} other clients of it wait.");
            ("still waiting for a backend connection", detail)
        }
        Cause::Quota => {
            let detail = "Quotas of the tenant are used up, and delay its transactions.".to_owned();
            ("still waiting for the tenant's quota", detail)
        }
        Cause::Pause => {
            let detail = tenant.state().reason.clone();
            let detail = detail.unwrap_or_else(|| "It goes on when the operator resumes it.".to_owned());
            ("still waiting: the tenant is paused", detail)
        }
    }
}

/// The same as [`unless_over`], with a NOTICE to the client when it takes long.
pub(super) async fn patiently<T>(
    session: &Welcomed,
    client: &mut Endpoint,
    notice: &mut Notice,
    cause: Cause,
    wanted: impl Future<Output = T>,
) -> Result<T, NoBackend> {
    let mut wanted = std::pin::pin!(wanted);
    let mut waits = false;
    poll_fn(|cx| {
        if let Poll::Ready(got) = wanted.as_mut().poll(cx) {
            return Poll::Ready(Ok(got));
        }
        notice.poll(session, cause, client, cx);
        if client.has_unsent()
            && let Poll::Ready(Err(_)) = client.poll_send(cx)
        {
            return Poll::Ready(Err(NoBackend::End(End::ClientGone)));
        }
        poll_over(session, &mut waits, cx).map(Err)
    })
    .await
}
