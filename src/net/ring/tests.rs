//! Sockets in a ring, against ordinary ones.

use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::task::Waker;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Runs on a thread that has a ring; none where the kernel has no io_uring.
fn on_ring<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    if let Err(error) = probe() {
        eprintln!("no io_uring here, left out: {error}");
        return None;
    }
    let thread = std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().on_thread_park(before_sleep).build().unwrap();
        enter().unwrap();
        let result = runtime.block_on(async move {
            tokio::spawn(drive());
            tokio::time::timeout(Duration::from_secs(30), work).await.expect("in time")
        });
        drop(runtime);
        leave();
        result
    });
    Some(thread.join().unwrap())
}

fn pair() -> (RingSocket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (RingSocket::new(ours.into()).unwrap(), theirs)
}

/// The other side's blocking work, off the thread.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn numbered(length: usize) -> Vec<u8> {
    (0..length as u32).flat_map(u32::to_le_bytes).take(length).collect()
}

#[test]
fn short_messages_go_both_ways() {
    on_ring(async {
        let (mut ours, mut theirs) = pair();
        for round in 0..100_u8 {
            ours.write_all(&[round; 100]).await.unwrap();
            let read;
            (theirs, read) = aside(move || {
                let mut read = [0; 100];
                theirs.read_exact(&mut read).unwrap();
                theirs.write_all(&read[..50]).unwrap();
                (theirs, read)
            })
            .await;
            assert_eq!(read, [round; 100]);
            let mut answer = [0; 50];
            ours.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, [round; 50]);
        }
        drop(theirs);
        assert_eq!(ours.read(&mut [0; 10]).await.unwrap(), 0);
    });
}

#[test]
fn much_is_sent_in_order_to_a_slow_reader() {
    on_ring(async {
        let (mut ours, mut theirs) = pair();
        let bytes = numbered(5_000_000);
        let expected = bytes.clone();
        let reader = aside(move || {
            let mut read = Vec::new();
            let mut piece = [0; 3000];
            loop {
                match theirs.read(&mut piece).unwrap() {
                    0 => return read,
                    count => read.extend_from_slice(&piece[..count]),
                }
                if read.len() % 90_000 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let writer = async {
            // Long ones go past the ring, short ones through it: their order must not change.
            let mut rest = &bytes[..];
            for length in [10, 20_000, 7, 7, 100_000, 4_000].into_iter().cycle() {
                let (now, later) = rest.split_at(length.min(rest.len()));
                ours.write_all(now).await.unwrap();
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            ours.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(reader, writer);
        assert!(read == expected);
    });
}

#[test]
fn much_is_received_in_order_and_no_reader_holds_the_buffers_of_others() {
    on_ring(async {
        // One does not read at all: what it may have kept for it is bounded.
        let (mut idle, mut flood) = pair();
        flood.set_nonblocking(true).unwrap();
        let (mut ours, mut theirs) = pair();
        let expected = numbered(5_000_000);
        let bytes = expected.clone();
        let writer = aside(move || {
            let mut flooded = 0;
            for piece in bytes.chunks(10_000) {
                theirs.write_all(piece).unwrap();
                flooded += flood.write(&[1; 50_000]).unwrap_or(0);
            }
            (flooded, flood)
        });
        let mut read = vec![0; expected.len()];
        let (_, (flooded, flood)) = tokio::join!(async { ours.read_exact(&mut read).await.unwrap() }, writer);
        assert!(read == expected);
        let most = connection::MAX_UNREAD + 64 * 16 * 1024 + (1 << 20);
        assert!(flooded < most, "{flooded} bytes were taken for somebody who does not read");
        drop(flood);
        let mut rest = Vec::new();
        idle.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), flooded);
    });
}

#[test]
fn more_sockets_than_buffers_receive_at_once() {
    on_ring(async {
        let mut pairs: Vec<_> = (0..500).map(|_| pair()).collect();
        for (_, theirs) in &mut pairs {
            theirs.write_all(&[7; 3000]).unwrap();
        }
        for (ours, _) in &mut pairs {
            let mut read = [0; 3000];
            ours.read_exact(&mut read).await.unwrap();
            assert_eq!(read, [7; 3000]);
        }
    });
}

#[test]
fn the_last_words_arrive_and_a_dropped_socket_is_closed() {
    on_ring(async {
        let (mut ours, mut theirs) = pair();
        ours.write_all(b"goodbye").await.unwrap();
        drop(ours);
        let mut heard = String::new();
        aside(move || {
            theirs.read_to_string(&mut heard).unwrap();
            assert_eq!(heard, "goodbye");
        })
        .await;
    });
}

#[test]
fn it_may_be_dropped_elsewhere_but_not_used() {
    on_ring(async {
        let (mut ours, mut theirs) = pair();
        aside(move || {
            let mut cx = Context::from_waker(Waker::noop());
            let mut room = [0; 10];
            let read = Pin::new(&mut ours).poll_read(&mut cx, &mut ReadBuf::new(&mut room));
            assert!(matches!(read, Poll::Ready(Err(error)) if error.kind() == ErrorKind::Other));
        })
        .await;
        assert_eq!(aside(move || theirs.read(&mut [0; 10]).unwrap()).await, 0);
    });
}

#[test]
fn a_peer_that_is_gone_is_an_error_to_write_to() {
    on_ring(async {
        let (mut ours, theirs) = pair();
        drop(theirs);
        let error = loop {
            if let Err(error) = ours.write_all(b"hello?").await {
                break error;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn places_of_closed_sockets_are_used_again() {
    on_ring(async {
        for _ in 0..1000 {
            let (mut ours, mut theirs) = pair();
            theirs.write_all(b"x").unwrap();
            assert_eq!(ours.read_u8().await.unwrap(), b'x');
            ours.write_all(b"y").await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        let places = RING.with(|cell| cell.borrow().as_ref().map(|ring| ring.connections.len()));
        assert!(places.unwrap() < 10, "{places:?} are left");
    });
}

#[test]
fn the_end_of_a_peer_that_leaves_in_the_middle_is_seen() {
    on_ring(async {
        for _ in 0..50 {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let mut theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (ours, _) = listener.accept().unwrap();
            ours.set_nonblocking(true).unwrap();
            let mut ours = RingSocket::new(ours.into()).unwrap();
            ours.write_all(b"it does not read this").await.unwrap();
            let sender = aside(move || {
                theirs.write_all(&vec![1; 3_000_000]).unwrap();
                // With something unread the connection is reset, and the end comes right behind the data.
                drop(theirs);
            });
            let mut read = Vec::new();
            let (end, ()) = tokio::join!(ours.read_to_end(&mut read), sender);
            assert!(end.is_ok() || read.len() <= 3_000_000);
        }
    });
}
