//! One thread's ring: what its connections want goes to the kernel in one call, and what came of it comes back.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use slab::Slab;

use super::buffers::{Buffers, GROUP, Piece};
use super::connection::Connection;

/// Requests that go to the kernel with one call at most.
const ENTRIES: u32 = 256;
/// Completions that are looked at together.
const BATCH: usize = 64;
/// So many connections that want something are worth a turn while tasks still run.
const EAGER: usize = 16;
/// So often a turn asks the kernel at most.
const MAX_PASSES: usize = 4;
/// Buffers for sending that are kept for the next.
const MAX_SPARE: usize = 64;
/// A longer one is not kept.
const SPARE: usize = 16 * 1024;
/// Of the io_uring header: run what is to be completed.
const ENTER_GETEVENTS: u32 = 1;

const RECEIVE: u64 = 0;
const SEND: u64 = 1 << 32;
const HANG_UP: u64 = 2 << 32;
/// Nobody waits for its outcome.
const CANCEL: u64 = 3 << 32;

/// What other threads may touch.
#[derive(Debug)]
pub(super) struct Shared {
    /// Connections whose owners were dropped elsewhere.
    left: Mutex<Vec<(u32, OwnedFd)>>,
    some_left: AtomicBool,
    /// An eventfd: the kernel, and other threads, make it readable when there is something to do.
    pub bell: OwnedFd,
}

impl Shared {
    pub fn leave(&self, key: u32, fd: OwnedFd) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).push((key, fd));
        self.some_left.store(true, Ordering::Release);
        let one = 1_u64.to_ne_bytes();
        // SAFETY: eight bytes, as eventfd(2) asks for. It fails only when the counter is full: then it is readable.
        let _ = unsafe { libc::write(self.bell.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

/// See the module.
pub(super) struct Ring {
    ring: IoUring,
    // After the ring, so that it is dropped after it.
    pub buffers: Buffers,
    pub connections: Slab<Connection>,
    /// Connections that want something of the kernel.
    listed: Vec<u32>,
    /// Connections for which there was no buffer.
    starved: Vec<u32>,
    /// Those that got something in the last turn.
    holding: Vec<u32>,
    spare: Vec<Vec<u8>>,
    /// Of the task that takes turns.
    pub driver: Option<Waker>,
    pub shared: Arc<Shared>,
}

impl Ring {
    /// # Errors
    /// The kernel has no io_uring, does not allow it, or is older than 6.1.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(ENTRIES * 8)
            .build(ENTRIES)?;
        // SAFETY: field order has the ring dropped before them.
        let buffers = unsafe { Buffers::register(&ring.submitter())? };
        // SAFETY: a new descriptor, or -1.
        let bell = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if bell < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else's.
        let bell = unsafe { OwnedFd::from_raw_fd(bell) };
        ring.submitter().register_eventfd(bell.as_raw_fd())?;
        let shared = Shared { left: Mutex::default(), some_left: AtomicBool::new(false), bell };
        Ok(Ring {
            ring,
            buffers,
            connections: Slab::new(),
            listed: Vec::new(),
            starved: Vec::new(),
            holding: Vec::new(),
            spare: Vec::new(),
            driver: None,
            shared: Arc::new(shared),
        })
    }

    pub fn add(&mut self, fd: RawFd) -> u32 {
        let key = self.connections.insert(Connection::new(fd)) as u32;
        self.list(key);
        key
    }

    /// The connection is looked at in the next turn.
    pub fn list(&mut self, key: u32) {
        let connection = &mut self.connections[key as usize];
        if std::mem::replace(&mut connection.listed, true) {
            return;
        }
        self.listed.push(key);
        // Fewer have their turn when all tasks have run.
        if self.listed.len() == EAGER {
            self.come_back();
        }
    }

    /// Has the task that takes turns run behind all others.
    fn come_back(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    /// Queues bytes to be sent with the next turn; how many there was room for.
    pub fn write(&mut self, key: u32, bytes: &[u8], max: usize) -> usize {
        let connection = &mut self.connections[key as usize];
        let count = bytes.len().min(max.saturating_sub(connection.unsent.len()));
        if count == 0 {
            return 0;
        }
        if connection.unsent.capacity() == 0 {
            connection.unsent = self.spare.pop().unwrap_or_default();
        }
        connection.unsent.extend_from_slice(&bytes[..count]);
        if !connection.is_sending() {
            self.list(key);
        }
        count
    }

    /// The owner is gone. What it wrote is sent as far as the socket takes it at once.
    pub fn leave(&mut self, key: u32, fd: OwnedFd) {
        let connection = &mut self.connections[key as usize];
        connection.left = Some(fd);
        if connection.wants_to_send() {
            // Nobody is left to tell how it went.
            let _ = send_now(connection.fd, &connection.unsent);
        }
        connection.unsent = Vec::new();
        connection.spill(&mut self.buffers);
        let asked = [(connection.receiving, RECEIVE), (connection.watched, HANG_UP), (connection.is_sending(), SEND)];
        for (asked, request) in asked {
            if asked {
                self.cancel(request | u64::from(key));
            }
        }
        self.end(key);
    }

    fn end(&mut self, key: u32) {
        let connection = &self.connections[key as usize];
        // One that is listed has its turn still to come.
        if connection.left.is_some() && connection.is_done() && !connection.listed {
            self.connections.remove(key as usize);
        }
    }

    fn cancel(&mut self, request: u64) {
        let entry = opcode::AsyncCancel::new(request).build().user_data(CANCEL);
        // SAFETY: it points to nothing.
        unsafe { self.push(entry) };
    }

    /// # Safety
    /// What the request points to must live until it is completed.
    unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: passed on.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.enter();
        }
    }

    /// Gives the kernel what is to be done, and lets it complete what it can.
    fn enter(&mut self) {
        let waiting = self.ring.submission().len() as u32;
        // SAFETY: no argument.
        let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(waiting, 0, ENTER_GETEVENTS, None) };
        if let Err(error) = entered
            && !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
        {
            tracing::error!(%error, "io_uring");
        }
    }

    /// One turn: what connections want goes to the kernel, what it has done comes back, and who waits for it is woken.
    pub fn turn(&mut self) {
        if self.shared.some_left.swap(false, Ordering::AcqRel) {
            let left = std::mem::take(&mut *self.shared.left.lock().unwrap_or_else(PoisonError::into_inner));
            for (key, fd) in left {
                self.leave(key, fd);
            }
        }
        self.spill();
        for key in std::mem::take(&mut self.starved) {
            if self.connections.contains(key as usize) {
                self.list(key);
            }
        }
        self.ring.completion().disable_eventfd();
        for _ in 0..MAX_PASSES {
            self.ask();
            if self.has_asked() || self.ring.submission().taskrun() {
                self.enter();
            }
            self.reap();
            if self.listed.is_empty() && !self.has_asked() {
                break;
            }
        }
        self.ring.completion().enable_eventfd();
        // The next turn comes behind the tasks that were woken. What was done before the bell was back has not rung it.
        let done = self.ring.submission().taskrun() || !self.ring.completion().is_empty();
        if done || self.has_asked() || !self.listed.is_empty() || !self.starved.is_empty() {
            self.come_back();
        }
    }

    /// Requests are ready, and the kernel does not know of them yet.
    fn has_asked(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Who has not read since the last turn holds no buffers any longer: they are there for all.
    fn spill(&mut self) {
        let mut holding = std::mem::take(&mut self.holding);
        for key in holding.drain(..) {
            let Some(connection) = self.connections.get_mut(key as usize) else { continue };
            if !connection.holds_buffers() {
                continue;
            }
            connection.spill(&mut self.buffers);
            if connection.is_overfull() && connection.receiving {
                self.cancel(RECEIVE | u64::from(key));
            }
        }
        self.holding = holding;
    }

    /// Requests for what connections want.
    fn ask(&mut self) {
        let mut listed = std::mem::take(&mut self.listed);
        // As many as there is room for: what they complete at once has room as well then.
        let room = (ENTRIES as usize - self.ring.submission().len()) / 3;
        for key in listed.drain(..room.min(listed.len())) {
            let connection = &mut self.connections[key as usize];
            connection.listed = false;
            if connection.wants_to_send() {
                connection.sending = std::mem::take(&mut connection.unsent);
                connection.sent = 0;
                self.send(key);
            }
            let connection = &mut self.connections[key as usize];
            if connection.wants_to_receive() {
                connection.receiving = true;
                let entry = receive(connection).user_data(RECEIVE | u64::from(key));
                // SAFETY: it receives into the registered buffers only.
                unsafe { self.push(entry) };
            }
            let connection = &mut self.connections[key as usize];
            if connection.wants_to_be_watched() {
                connection.watched = true;
                let entry = opcode::PollAdd::new(types::Fd(connection.fd), libc::POLLRDHUP as u32).build();
                // SAFETY: it points to nothing.
                unsafe { self.push(entry.user_data(HANG_UP | u64::from(key))) };
            }
            self.end(key);
        }
        // Those that were listed meanwhile.
        listed.append(&mut self.listed);
        self.listed = listed;
    }

    fn send(&mut self, key: u32) {
        let connection = &self.connections[key as usize];
        let rest = &connection.sending[connection.sent..];
        let entry = opcode::Send::new(types::Fd(connection.fd), rest.as_ptr(), rest.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build()
            .user_data(SEND | u64::from(key));
        // SAFETY: `sending` is not touched until its completion.
        unsafe { self.push(entry) };
    }

    /// Looks at what is completed.
    fn reap(&mut self) {
        loop {
            let mut room = [const { MaybeUninit::uninit() }; BATCH];
            let done = self.ring.completion().fill(&mut room).len();
            for entry in &room[..done] {
                // SAFETY: the first `done` were filled.
                let entry = unsafe { entry.assume_init_ref() };
                let key = entry.user_data() as u32;
                match entry.user_data() & !u64::from(u32::MAX) {
                    RECEIVE => self.received(key, entry.result(), entry.flags()),
                    SEND => self.sent(key, entry.result()),
                    HANG_UP => self.hung_up(key),
                    _ => {}
                }
            }
            if done < BATCH {
                return;
            }
        }
    }

    fn received(&mut self, key: u32, result: i32, flags: u32) {
        let connection = &mut self.connections[key as usize];
        connection.receiving = cqueue::more(flags);
        match (cqueue::buffer_select(flags), result) {
            (Some(buffer), 1..) if connection.left.is_none() => {
                connection.received(Piece::new(buffer, result as usize));
                self.holding.push(key);
            }
            (Some(buffer), _) => self.buffers.give_back_empty(buffer),
            (None, _) => {}
        }
        match -result {
            0 => connection.ended = Some(Ok(())),
            // All buffers are taken: there are some again in the next turn.
            libc::ENOBUFS => self.starved.push(key),
            libc::EINTR | libc::EAGAIN | libc::ECANCELED => {}
            code @ 1.. => connection.ended = Some(Err(code)),
            _ => {}
        }
        connection.wake_reader();
        if connection.wants_to_receive() && result != -libc::ENOBUFS {
            self.list(key);
        }
        self.end(key);
    }

    /// The peer has ended, or is gone.
    fn hung_up(&mut self, key: u32) {
        let connection = &mut self.connections[key as usize];
        (connection.watched, connection.hung_up) = (false, true);
        if connection.receiving {
            self.cancel(RECEIVE | u64::from(key));
        }
        self.end(key);
    }

    fn sent(&mut self, key: u32, result: i32) {
        let connection = &mut self.connections[key as usize];
        match result {
            1.. => connection.sent += result as usize,
            _ if -result == libc::EINTR || -result == libc::EAGAIN => {}
            _ => connection.failed = Some(if result == 0 { libc::EPIPE } else { -result }),
        }
        if connection.failed.is_none() && connection.sent < connection.sending.len() && connection.left.is_none() {
            return self.send(key);
        }
        let mut done = std::mem::take(&mut connection.sending);
        connection.wake_writer();
        if connection.failed.is_some() {
            connection.wake_reader();
        }
        if connection.wants_to_send() {
            self.list(key);
        }
        if self.spare.len() < MAX_SPARE && done.capacity() <= SPARE {
            done.clear();
            self.spare.push(done);
        }
        self.end(key);
    }
}

/// A request that completes each time something comes. It may pass over the end of a stream when data comes with it, and wait
/// for ever: a peer that has hung up is asked time and again instead.
fn receive(connection: &Connection) -> squeue::Entry {
    let fd = types::Fd(connection.fd);
    match connection.hung_up {
        false => opcode::RecvMulti::new(fd, GROUP).build(),
        true => {
            opcode::Recv::new(fd, std::ptr::null_mut(), 0).buf_group(GROUP).build().flags(squeue::Flags::BUFFER_SELECT)
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for (_, connection) in &mut self.connections {
            // The kernel may still look at it.
            std::mem::forget(std::mem::take(&mut connection.sending));
        }
    }
}

/// Sends without waiting, past the ring.
pub(super) fn send_now(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: `bytes` is readable for its length.
    let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
