//! The buffers that the kernel receives into: it takes one when there is something to receive, so that a connection at
//! rest has none.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// A power of two.
const COUNT: u16 = 64;
/// Bytes; as much as a TLS record holds, and twice what PostgreSQL sends at a time.
const SIZE: usize = 16 * 1024;
const PAGE: usize = 4096;
/// The number that requests name them by.
pub(super) const GROUP: u16 = 0;

/// What a buffer holds of a connection's bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    buffer: u16,
    from: u16,
    to: u16,
}

impl Piece {
    pub fn new(buffer: u16, length: usize) -> Self {
        Piece { buffer, from: 0, to: u16::try_from(length).expect("a buffer holds less") }
    }

    /// Without its first bytes; none when nothing is left.
    pub fn without(self, count: usize) -> Option<Piece> {
        let from = self.from + u16::try_from(count).expect("not more than it holds");
        (from < self.to).then_some(Piece { from, ..self })
    }
}

/// `io_uring_register(2)`, IORING_REGISTER_PBUF_RING: a ring of free buffers, ours at its tail and the kernel's at its head.
#[derive(Debug)]
pub(super) struct Buffers {
    ring: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    tail: u16,
}

impl Buffers {
    /// # Safety
    /// They have to outlive the ring that they are registered with.
    pub unsafe fn register(submitter: &Submitter<'_>) -> io::Result<Self> {
        let mut buffers = Buffers { ring: allocate(ring_layout()).cast(), memory: allocate(memory_layout()), tail: 0 };
        let address = buffers.ring.as_ptr() as u64;
        // SAFETY: the ring is COUNT entries long and lives as long as `buffers`.
        unsafe { submitter.register_buf_ring_with_flags(address, COUNT, GROUP, 0)? };
        for buffer in 0..COUNT {
            buffers.add(buffer);
        }
        buffers.publish();
        Ok(buffers)
    }

    pub fn bytes(&self, piece: Piece) -> &[u8] {
        debug_assert!(piece.buffer < COUNT);
        let start = usize::from(piece.buffer) * SIZE + usize::from(piece.from);
        // SAFETY: the buffer is ours until it is given back, and `piece` lies within it.
        unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().add(start), usize::from(piece.to) - usize::from(piece.from))
        }
    }

    /// The kernel may have the buffer again.
    pub fn give_back(&mut self, piece: Piece) {
        self.add(piece.buffer);
        self.publish();
    }

    pub fn give_back_empty(&mut self, buffer: u16) {
        self.add(buffer);
        self.publish();
    }

    fn add(&mut self, buffer: u16) {
        debug_assert!(buffer < COUNT);
        // SAFETY: within the ring, and the kernel does not read it before the tail says so.
        unsafe {
            let entry = &mut *self.ring.as_ptr().add(usize::from(self.tail & (COUNT - 1)));
            entry.set_addr(self.memory.as_ptr().add(usize::from(buffer) * SIZE) as u64);
            entry.set_len(SIZE as u32);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&mut self) {
        // SAFETY: the tail lies in the first entry, where the kernel looks for it.
        unsafe {
            let tail = BufRingEntry::tail(self.ring.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated with these layouts.
        unsafe {
            dealloc(self.ring.as_ptr().cast(), ring_layout());
            dealloc(self.memory.as_ptr(), memory_layout());
        }
    }
}

fn ring_layout() -> Layout {
    Layout::from_size_align(usize::from(COUNT) * size_of::<BufRingEntry>(), PAGE).expect("small")
}

fn memory_layout() -> Layout {
    Layout::from_size_align(usize::from(COUNT) * SIZE, PAGE).expect("small")
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: no layout here is empty.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}
