//! One socket's side in the ring: what was received and not read, what was written and not sent.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::task::{Context, Waker};

use bytes::{Buf, BytesMut};
use smallvec::SmallVec;
use tokio::io::ReadBuf;

use super::buffers::{Buffers, Piece};

/// Bytes that are kept for a socket that takes them slowly; beyond, its writer waits.
pub(super) const MAX_UNSENT: usize = 64 * 1024;
/// Bytes that are kept for a reader that takes them slowly; beyond, the kernel keeps them.
pub(super) const MAX_UNREAD: usize = 256 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    pub fd: RawFd,
    /// Received by the kernel into buffers of ours.
    pieces: SmallVec<[Piece; 2]>,
    /// Received before them, and left unread for longer than buffers may be held.
    unread: BytesMut,
    /// How receiving has ended: the end of the stream, or an error number.
    pub ended: Option<Result<(), i32>>,
    /// The kernel is asked to receive.
    pub receiving: bool,
    /// It is asked to tell when the peer has ended or is gone.
    pub watched: bool,
    /// And it has told.
    pub hung_up: bool,
    /// In this turn's list already.
    pub listed: bool,
    /// The kernel reads it; the first `sent` bytes of it are done.
    pub sending: Vec<u8>,
    pub sent: usize,
    /// To be sent next.
    pub unsent: Vec<u8>,
    /// Sending has failed with this error number.
    pub failed: Option<i32>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Its owner has left: closed when the kernel is done with it.
    pub left: Option<OwnedFd>,
}

impl Connection {
    pub fn new(fd: RawFd) -> Self {
        Connection {
            fd,
            pieces: SmallVec::new(),
            unread: BytesMut::new(),
            ended: None,
            receiving: false,
            watched: false,
            hung_up: false,
            listed: false,
            sending: Vec::new(),
            sent: 0,
            unsent: Vec::new(),
            failed: None,
            reader: None,
            writer: None,
            left: None,
        }
    }

    pub fn is_sending(&self) -> bool {
        !self.sending.is_empty()
    }

    pub fn wants_to_send(&self) -> bool {
        !self.is_sending() && !self.unsent.is_empty() && self.failed.is_none()
    }

    pub fn wants_to_receive(&self) -> bool {
        !self.receiving && self.ended.is_none() && self.left.is_none() && self.unread.len() <= MAX_UNREAD
    }

    pub fn wants_to_be_watched(&self) -> bool {
        !self.watched && !self.hung_up && self.ended.is_none() && self.left.is_none()
    }

    pub fn received(&mut self, piece: Piece) {
        self.pieces.push(piece);
    }

    pub fn holds_buffers(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// Moves what was received out of the kernel's buffers, and gives them back.
    pub fn spill(&mut self, buffers: &mut Buffers) {
        for piece in self.pieces.drain(..) {
            self.unread.extend_from_slice(buffers.bytes(piece));
            buffers.give_back(piece);
        }
        self.pieces.shrink_to_fit();
    }

    pub fn is_overfull(&self) -> bool {
        self.unread.len() > MAX_UNREAD
    }

    /// Takes as much as there is room for, and is there.
    pub fn read(&mut self, buffers: &mut Buffers, into: &mut ReadBuf<'_>) -> usize {
        let before = into.filled().len();
        if !self.unread.is_empty() {
            let count = self.unread.len().min(into.remaining());
            into.put_slice(&self.unread[..count]);
            self.unread.advance(count);
            if self.unread.is_empty() {
                self.unread = BytesMut::new();
            }
        }
        let mut done = 0;
        for piece in &mut self.pieces {
            let bytes = buffers.bytes(*piece);
            let count = bytes.len().min(into.remaining());
            into.put_slice(&bytes[..count]);
            match piece.without(count) {
                Some(rest) => {
                    *piece = rest;
                    break;
                }
                None => {
                    buffers.give_back(*piece);
                    done += 1;
                }
            }
        }
        self.pieces.drain(..done);
        if self.pieces.is_empty() && self.pieces.spilled() {
            self.pieces = SmallVec::new();
        }
        into.filled().len() - before
    }

    /// How reading goes on when nothing is left to read: none, when more may come.
    pub fn end(&self) -> Option<io::Result<()>> {
        match (self.ended, self.failed) {
            (Some(Ok(())), None) => Some(Ok(())),
            (Some(Err(code)), _) | (Some(Ok(())), Some(code)) | (None, Some(code)) => {
                Some(Err(io::Error::from_raw_os_error(code)))
            }
            (None, None) => None,
        }
    }

    pub fn wait_to_read(&mut self, cx: &Context<'_>) {
        remember(&mut self.reader, cx);
    }

    pub fn wait_to_write(&mut self, cx: &Context<'_>) {
        remember(&mut self.writer, cx);
    }

    /// Wakes whoever read last. By reference: nothing is dropped, and nothing runs, while the ring is borrowed.
    pub fn wake_reader(&self) {
        if let Some(waker) = &self.reader {
            waker.wake_by_ref();
        }
    }

    pub fn wake_writer(&self) {
        if let Some(waker) = &self.writer {
            waker.wake_by_ref();
        }
    }

    /// The kernel has nothing of it in hand.
    pub fn is_done(&self) -> bool {
        !self.receiving && !self.watched && !self.is_sending()
    }
}

fn remember(waker: &mut Option<Waker>, cx: &Context<'_>) {
    if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *waker = Some(cx.waker().clone());
    }
}
