//! The task that holds the one backend: commands out, notifications in.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::books::{Books, Member, NoPlace};
use super::mailbox::Mailbox;
use crate::backend::{Backend, BackendState, CommandError};
use crate::pool::{Checkout, Pool};
use crate::wire::tag::backend as tag;
use crate::wire::{HEADER, Header, PgError, ReadFault, Severity, cstr, messages, sqlstate};

/// Its name in `pg_stat_activity`, the encoding that all its clients have, and no time limit: a role's is meant for clients.
const SET_UP: &str = "SELECT pg_catalog.set_config(name, CASE name WHEN 'application_name' THEN 'pgtenant listen' \
    WHEN 'client_encoding' THEN 'UTF8' ELSE '0' END, false) FROM pg_catalog.pg_settings WHERE name IN \
    ('application_name', 'client_encoding', 'idle_session_timeout', 'statement_timeout', 'lock_timeout')";
/// PostgreSQL's notifications are shorter than 8,000 bytes, its errors and notices about our commands as well.
const MAX_MESSAGE: usize = 1 << 20;

/// How long everybody else waits for a client that takes its notifications too slowly.
const PATIENCE: Duration = Duration::from_secs(2);

type Waiter = oneshot::Sender<Result<(), PgError>>;
/// The answer to a LISTEN.
pub type Answer = oneshot::Receiver<Result<(), PgError>>;

/// One backend that listens for many clients.
#[derive(Debug)]
pub struct Hub {
    pub pool: Arc<Pool>,
    books: Mutex<Books<Arc<Mailbox>, Waiter>>,
    /// The books have changed.
    changed: AtomicWaker,
}

impl Hub {
    pub fn new(pool: Arc<Pool>) -> Hub {
        Hub { pool, books: Mutex::default(), changed: AtomicWaker::new() }
    }

    fn books(&self) -> MutexGuard<'_, Books<Arc<Mailbox>, Waiter>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a channel; the answer comes when the backend listens to it.
    ///
    /// # Errors
    /// There is no place for one more channel, or this hub has ended.
    pub fn ask(&self, channel: &str, mailbox: &Arc<Mailbox>) -> Result<Answer, NoPlace> {
        let (waiter, answer) = oneshot::channel();
        self.books().ask(channel, member(mailbox), mailbox.clone(), waiter)?;
        self.changed.wake();
        Ok(answer)
    }

    /// Asks whether all that was notified before is here; the answer comes behind it.
    ///
    /// # Errors
    /// This hub has ended.
    pub fn ask_for_all(&self) -> Result<Answer, NoPlace> {
        let (waiter, answer) = oneshot::channel();
        self.books().ask_for_all(waiter)?;
        self.changed.wake();
        Ok(answer)
    }

    /// The client no longer wants to listen to this channel.
    pub fn leave(&self, channel: &str, mailbox: &Arc<Mailbox>) {
        self.books().leave(channel, member(mailbox));
        self.changed.wake();
    }

    /// Listens until nobody wants it to any more, or the backend is lost.
    pub async fn run(&self) {
        let counted = self.pool.metrics().listens_with_a_backend();
        let checkout = tokio::select! {
            biased;
            () = self.everybody_left() => return,
            checkout = self.pool.checkout() => checkout,
        };
        let mut checkout = match checkout {
            Ok(checkout) => checkout,
            Err(error) => return self.end(error.to_client()),
        };
        match self.serve(&mut checkout).await {
            Ok(()) => checkout.release(),
            Err(error) => {
                let tenant = self.pool.tenant.id.as_str();
                tracing::warn!(tenant, database = self.pool.name.database, %error, "listening backend lost");
                self.end(lost(error));
            }
        }
        drop(counted);
    }

    async fn everybody_left(&self) {
        poll_fn(|cx| {
            self.changed.register(cx.waker());
            if self.books().close_if_idle() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    async fn serve(&self, checkout: &mut Checkout) -> Result<(), CommandError> {
        checkout.reset().await?;
        checkout.command(SET_UP).await?;
        let mut course = Course::default();
        poll_fn(|cx| self.poll(cx, checkout, &mut course)).await?;
        checkout.reset().await?;
        checkout.state.parameters = self.pool.share_parameters(&checkout.state.parameters);
        Ok(())
    }

    /// Ready when nobody listens any more and nothing is under way.
    fn poll(&self, cx: &mut Context<'_>, backend: &mut Backend, course: &mut Course) -> Poll<Result<(), CommandError>> {
        self.changed.register(cx.waker());
        let mut commands = BytesMut::new();
        {
            let mut books = self.books();
            while let Some(sql) = books.next_command() {
                messages::query(&mut commands, &sql);
            }
            if books.close_if_idle() {
                return Poll::Ready(Ok(()));
            }
        }
        let Backend { endpoint, state, .. } = backend;
        endpoint.queue(&commands);
        if endpoint.has_unsent()
            && let Poll::Ready(Err(error)) = endpoint.poll_send(cx)
        {
            return Poll::Ready(Err(error.into()));
        }
        ready!(course.poll_room(cx));
        match endpoint.poll_take(cx, |_, input| self.take(state, input, course)) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(0)) => Poll::Ready(Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())),
            // The clients of this thread come first, or what comes in one go would be too much for their mailboxes.
            Poll::Ready(Ok(_)) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }

    /// Takes what the backend says; gives how many bytes of it.
    fn take(&self, state: &mut BackendState, input: &[u8], course: &mut Course) -> Result<usize, CommandError> {
        let mut at = 0;
        while let Some(frame) = whole_message(&input[at..]).map_err(|_| CommandError::Unexpected)? {
            at += frame.len();
            let payload = &frame[HEADER..];
            match frame[0] {
                tag::NOTIFICATION => {
                    let (channel, _) = payload.get(4..).and_then(cstr).ok_or(CommandError::Unexpected)?;
                    let frame = Bytes::copy_from_slice(frame);
                    for mailbox in self.books().members(channel) {
                        if mailbox.put(&frame) {
                            course.crowd(mailbox);
                        }
                    }
                }
                tag::ERROR => {
                    let error = PgError::decode(payload);
                    if error.severity == Severity::Fatal {
                        return Err(CommandError::Refused(error));
                    }
                    course.failed = Some(error);
                }
                tag::READY => {
                    let failed = course.failed.take();
                    let answer = self.books().answered(failed.is_none(), |answer| !answer.is_closed());
                    if let Some(answer) = answer {
                        // Who does not wait any more was not added.
                        let _ = answer.send(failed.map_or(Ok(()), Err));
                    }
                }
                tag::PARAMETER_STATUS => state.reported(payload),
                _ => {}
            }
        }
        Ok(at)
    }

    /// Tells everybody that nothing comes any more.
    fn end(&self, error: PgError) {
        let (mailboxes, waiters) = self.books().close();
        for waiter in waiters {
            let _ = waiter.send(Err(error.clone().with_severity(Severity::Error)));
        }
        for mailbox in mailboxes {
            mailbox.end(error.clone().with_severity(Severity::Fatal));
        }
    }
}

/// Between two steps.
#[derive(Default)]
struct Course {
    /// Why the command that is being answered failed.
    failed: Option<PgError>,
    /// Clients for whose room we wait, and how long.
    crowded: Vec<Arc<Mailbox>>,
    patience: Option<Pin<Box<Sleep>>>,
}

impl Course {
    fn crowd(&mut self, mailbox: &Arc<Mailbox>) {
        if !self.crowded.iter().any(|known| Arc::ptr_eq(known, mailbox)) {
            self.crowded.push(mailbox.clone());
        }
    }

    /// Ready when there is room in all of them, or we have waited long enough: what waits at the instance meanwhile costs
    /// us nothing, but the other clients wait too.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.crowded.retain(|mailbox| mailbox.poll_room(cx).is_pending());
        if !self.crowded.is_empty() {
            let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
            ready!(patience.as_mut().poll(cx));
            self.crowded.drain(..).for_each(|mailbox| mailbox.stop_waiting());
        }
        self.patience = None;
        Poll::Ready(())
    }
}

/// A client is known by its mailbox, which it holds as long as it is in the books.
fn member(mailbox: &Arc<Mailbox>) -> Member {
    Member(Arc::as_ptr(mailbox) as usize)
}

fn whole_message(input: &[u8]) -> Result<Option<&[u8]>, ReadFault> {
    let header = Header::read(input, MAX_MESSAGE)?;
    Ok(header.and_then(|header| input.get(..HEADER + header.payload)))
}

/// What those are told who cannot know what they missed: what PostgreSQL said to the backend, as it would have to each.
fn lost(error: CommandError) -> PgError {
    let hint = "Notifications may have been missed. Connect again.";
    match error {
        CommandError::Refused(error) => error.with_hint(hint),
        _ => PgError::fatal(sqlstate::ADMIN_SHUTDOWN, "the backend that listens for this session is lost")
            .with_hint(hint),
    }
}
