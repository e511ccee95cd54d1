//! The notifications that wait for one client to take them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use bytes::Bytes;

use crate::wire::PgError;

/// What may wait, in bytes: each notification's own and what it costs to keep it.
const MAX_WAITING: usize = 4 << 20;
const COST: usize = 64;
/// With so many bytes it is worth waiting a moment for the client.
const CROWDED: usize = MAX_WAITING / 2;

/// See the module.
#[derive(Debug, Default)]
pub struct Mailbox {
    waiting: Mutex<Waiting>,
    /// The client's session.
    waker: AtomicWaker,
    /// Who waits for room.
    room: AtomicWaker,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// Somebody has waited for room, and will not again before there was some.
    waited_for: bool,
    /// Nothing comes any more.
    ended: Option<PgError>,
}

impl Mailbox {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a notification, a whole message. One too many ends the mailbox: the client would miss it. Says whether it is
    /// time to wait for room.
    pub fn put(&self, frame: &Bytes) -> bool {
        let mut waiting = self.waiting();
        if waiting.ended.is_some() {
            return false;
        }
        waiting.bytes += frame.len() + COST;
        if waiting.bytes > MAX_WAITING {
            *waiting = Waiting { ended: Some(too_many()), ..Waiting::default() };
        } else {
            waiting.frames.push_back(frame.clone());
        }
        let is_crowded = waiting.bytes > CROWDED && !waiting.waited_for;
        drop(waiting);
        self.waker.wake();
        is_crowded
    }

    /// Ready when there is room again.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.room.register(cx.waker());
        let waiting = self.waiting();
        if waiting.bytes <= CROWDED || waiting.waited_for { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Takes out what the client shall not hear any more: `keeps` is asked about each.
    pub fn retain(&self, keeps: impl Fn(&Bytes) -> bool) {
        let mut waiting = self.waiting();
        waiting.frames.retain(keeps);
        waiting.bytes = waiting.frames.iter().map(|frame| frame.len() + COST).sum();
    }

    /// Nobody waits any longer for a client that does not make room.
    pub fn stop_waiting(&self) {
        self.waiting().waited_for = true;
    }

    /// What is there can still be taken, then comes the error.
    pub fn end(&self, why: PgError) {
        self.waiting().ended.get_or_insert(why);
        self.waker.wake();
    }

    /// The next notification; pending while there is none.
    ///
    /// # Errors
    /// None comes any more, and the client may have missed some: its session has to end.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Result<Bytes, PgError>> {
        self.waker.register(cx.waker());
        let mut waiting = self.waiting();
        if let Some(frame) = waiting.frames.pop_front() {
            waiting.bytes -= frame.len() + COST;
            if waiting.bytes <= CROWDED {
                waiting.waited_for = false;
                self.room.wake();
            }
            if waiting.frames.is_empty() {
                waiting.frames = VecDeque::new();
            }
            return Poll::Ready(Ok(frame));
        }
        match &waiting.ended {
            Some(why) => Poll::Ready(Err(why.clone())),
            None => Poll::Pending,
        }
    }

    /// For a client that takes nothing at the moment: whether there is nothing for it any more but the error.
    ///
    /// # Errors
    /// As above.
    pub fn poll_ended(&self, cx: &mut Context<'_>) -> Result<(), PgError> {
        self.waker.register(cx.waker());
        let waiting = self.waiting();
        waiting.ended.clone().filter(|_| waiting.frames.is_empty()).map_or(Ok(()), Err)
    }
}

fn too_many() -> PgError {
    PgError::fatal("53400", "too many notifications wait for this session to take them")
        .with_detail(format!("At most {} MiB may wait.", MAX_WAITING >> 20))
        .with_hint("Read notifications as they come, and keep transactions short in sessions that listen.")
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn what_waits_is_bounded_and_one_too_many_ends_it() {
        let mut cx = Context::from_waker(Waker::noop());
        let mailbox = Mailbox::default();
        let frame = Bytes::from(vec![0; 8000]);
        let most = MAX_WAITING / (8000 + COST);
        for _ in 0..2 {
            let crowded = (0..most).filter(|_| mailbox.put(&frame)).count();
            assert_eq!((crowded, mailbox.poll_room(&mut cx)), (most / 2, Poll::Pending));
            mailbox.stop_waiting();
            assert!(mailbox.poll_room(&mut cx).is_ready());
            (0..most).for_each(|_| assert!(matches!(mailbox.poll_next(&mut cx), Poll::Ready(Ok(_)))));
            assert!(mailbox.poll_next(&mut cx).is_pending());
        }
        let _ = (0..=most).map(|_| mailbox.put(&frame)).collect::<Vec<bool>>();
        assert!(mailbox.poll_room(&mut cx).is_ready());
        let Poll::Ready(Err(error)) = mailbox.poll_next(&mut cx) else { panic!("it has ended") };
        assert_eq!(error.code, "53400");
        assert_eq!(mailbox.poll_ended(&mut cx), Err(error));
    }

    #[test]
    fn what_was_there_comes_before_the_end() {
        let mut cx = Context::from_waker(Waker::noop());
        let mailbox = Mailbox::default();
        mailbox.put(&Bytes::from_static(b"A"));
        mailbox.put(&Bytes::from_static(b"C"));
        mailbox.retain(|frame| frame != "C");
        mailbox.end(PgError::fatal("57P01", "gone"));
        mailbox.put(&Bytes::from_static(b"B"));
        assert_eq!(mailbox.poll_ended(&mut cx), Ok(()));
        assert!(matches!(mailbox.poll_next(&mut cx), Poll::Ready(Ok(frame)) if frame == b"A"[..]));
        assert!(matches!(mailbox.poll_next(&mut cx), Poll::Ready(Err(error)) if error.code == "57P01"));
    }
}
