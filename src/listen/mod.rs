//! LISTEN for many clients of one database on one backend, so that a client that only listens keeps none for itself.
//!
//! There is a `Hub` for each (tenant, database) as long as somebody listens. It holds a backend of its first client's
//! pool, which counts within the tenant's bounds as any other.

mod books;
mod hub;
mod mailbox;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::metrics::Held;
use crate::pool::Pool;
use crate::tenant::Tenant;
use crate::wire::{HEADER, PgError, cstr, sqlstate};
use books::NoPlace;
use hub::{Answer, Hub};
use mailbox::Mailbox;

/// Channels of one client here; with more it listens on a backend of its own.
const MAX_CHANNELS: usize = 1000;

/// All of them.
#[derive(Debug, Default)]
pub struct Hubs {
    hubs: Mutex<HashMap<Place, Arc<Hub>, ahash::RandomState>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Place {
    /// The tenant's address: its hub holds it.
    tenant: usize,
    database: String,
}

impl Place {
    fn of(pool: &Pool) -> Place {
        Place { tenant: Arc::as_ptr(&pool.tenant) as usize, database: pool.name.database.clone() }
    }
}

/// How a LISTEN went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The client hears what is sent from now on.
    Yes,
    /// The client has to listen on a backend of its own: the bounds leave no backend for it beside a shared one, or it
    /// listens to too many channels.
    Elsewhere,
}

impl Hubs {
    /// How many backends listen for a tenant's clients, or are being got for that.
    pub fn count(&self, tenant: &Arc<Tenant>) -> usize {
        let address = Arc::as_ptr(tenant) as usize;
        let hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        hubs.keys().filter(|place| place.tenant == address).count()
    }

    /// Lets a client listen to a channel, named as PostgreSQL keeps it. `listener` is there as long as the client listens
    /// to anything. Cancel safe: dropped before its end, it leaves everything as it was.
    ///
    /// # Errors
    /// There is no backend for it, or PostgreSQL refuses the command. The session can go on.
    pub async fn listen(
        self: &Arc<Self>,
        listener: &mut Option<Listener>,
        pool: &Arc<Pool>,
        channel: String,
    ) -> Result<Heard, PgError> {
        if listener.as_ref().is_some_and(|known| known.channels.contains(&channel)) {
            return Ok(Heard::Yes);
        }
        if listener.as_ref().is_some_and(|known| known.channels.len() >= MAX_CHANNELS) {
            return Ok(Heard::Elsewhere);
        }
        let mailbox = listener.as_ref().map_or_else(Arc::default, |known| known.mailbox.clone());
        let asked = match &listener {
            Some(known) => known.hub.ask(&channel, &mailbox).map(|answer| (known.hub.clone(), answer)),
            None => self.ask(pool, &channel, &mailbox),
        };
        let (hub, answer) = match asked {
            Ok(asked) => asked,
            Err(NoPlace::Full) => return Ok(Heard::Elsewhere),
            Err(NoPlace::Closed) => return Err(ended()),
        };
        let asking = Asking { hub: &hub, mailbox: &mailbox, channel: &channel, answer: Some(answer) };
        asking.answer().await?;
        let counted = || hub.pool.metrics().listens();
        listener
            .get_or_insert_with(|| Listener {
                hub: hub.clone(),
                mailbox,
                channels: HashSet::new(),
                _counted: counted(),
            })
            .channels
            .insert(channel);
        Ok(Heard::Yes)
    }

    /// Asks the hub of this pool's database, a new one if need be and the bounds allow it.
    fn ask(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        channel: &str,
        mailbox: &Arc<Mailbox>,
    ) -> Result<(Arc<Hub>, Answer), NoPlace> {
        let mut hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        let place = Place::of(pool);
        if let Some(hub) = hubs.get(&place) {
            match hub.ask(channel, mailbox) {
                Err(NoPlace::Closed) => {}
                asked => return asked.map(|answer| (hub.clone(), answer)),
            }
        }
        if !leaves_room(pool, hubs.iter().filter(|(at, _)| **at != place).map(|(_, hub)| &*hub.pool)) {
            return Err(NoPlace::Full);
        }
        let hub = Arc::new(Hub::new(pool.clone()));
        let answer = hub.ask(channel, mailbox)?;
        hubs.insert(place, hub.clone());
        let (hubs, running) = (self.clone(), hub.clone());
        pool.home().spawn(async move {
            running.run().await;
            hubs.forget(&running);
        });
        Ok((hub, answer))
    }

    /// A new one may have taken its place already.
    fn forget(&self, hub: &Arc<Hub>) {
        let mut hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        hubs.retain(|_, known| !Arc::ptr_eq(known, hub));
    }
}

/// Whether one more hub leaves at least one backend for everything else within each bound: with none, all the others
/// would wait for as long as somebody listens.
fn leaves_room<'a>(pool: &Pool, others: impl Iterator<Item = &'a Pool>) -> bool {
    let record = pool.tenant.record();
    let (mut of_role, mut of_tenant, mut of_instance) = (1, 1, 1);
    for other in others {
        let same_tenant = Arc::ptr_eq(&other.tenant, &pool.tenant);
        of_role += u32::from(same_tenant && other.name == pool.name);
        of_tenant += u32::from(same_tenant);
        of_instance += u32::from(other.tenant.record().instance.name == record.instance.name);
    }
    of_role < record.pool.max_backends_per_role
        && of_tenant < record.pool.max_backends
        && of_instance < record.instance.max_backends
}

/// A client's request until its answer: given up on drop.
struct Asking<'a> {
    hub: &'a Hub,
    mailbox: &'a Arc<Mailbox>,
    channel: &'a str,
    answer: Option<Answer>,
}

impl Asking<'_> {
    async fn answer(mut self) -> Result<(), PgError> {
        let answer = match &mut self.answer {
            Some(answer) => answer.await.unwrap_or_else(|_| Err(ended())),
            None => Err(ended()),
        };
        // Nothing to give up any more, unless it went wrong.
        if answer.is_ok() {
            self.answer = None;
        }
        answer
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        // First the one, then the other: the hub adds nobody who does not wait.
        if let Some(answer) = self.answer.take() {
            drop(answer);
            self.hub.leave(self.channel, self.mailbox);
        }
    }
}

/// A client that listens; dropping it ends that.
#[derive(Debug)]
pub struct Listener {
    hub: Arc<Hub>,
    mailbox: Arc<Mailbox>,
    channels: HashSet<String>,
    _counted: Held,
}

impl Listener {
    /// Waits until all is here that was notified before; the client can hear it. If the backend is lost, it hears of that.
    pub fn all_is_here(&self) -> impl Future<Output = ()> + use<> {
        let asked = self.hub.ask_for_all();
        async move {
            if let Ok(answer) = asked {
                let _ = answer.await;
            }
        }
    }

    /// Takes out what has come on this channel.
    pub fn drop_waiting(&self, channel: &str) {
        let is_of =
            |frame: &Bytes| frame.get(HEADER + 4..).and_then(cstr).map(|(it, _)| it) == Some(channel.as_bytes());
        self.mailbox.retain(|frame| !is_of(frame));
    }

    pub fn unlisten(&mut self, channel: &str) {
        if self.channels.remove(channel) {
            self.hub.leave(channel, &self.mailbox);
        }
    }

    /// Whether the client listens to nothing any more.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// The next NotificationResponse, whole and as PostgreSQL wrote it.
    ///
    /// # Errors
    /// The client may have missed some: its session has to end.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Result<Bytes, PgError>> {
        self.mailbox.poll_next(cx)
    }

    /// For a client that takes nothing at the moment: whether there is nothing for it any more but the error.
    ///
    /// # Errors
    /// As above.
    pub fn poll_ended(&self, cx: &mut Context<'_>) -> Result<(), PgError> {
        self.mailbox.poll_ended(cx)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        for channel in &self.channels {
            self.hub.leave(channel, &self.mailbox);
        }
    }
}

fn ended() -> PgError {
    PgError::error(sqlstate::ADMIN_SHUTDOWN, "the backend that listens for this session is lost")
        .with_hint("Connect again.")
}
