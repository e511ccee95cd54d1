//! What the tests stand on: throwaway PostgreSQL, certificates, the proxy, a wire client, a faulty link.

pub mod certs;
pub mod faulty_link;
pub mod fleet;
pub mod frontend;
pub mod ground;
pub mod postgres;
pub mod proxy;
pub mod random;
pub mod scene;
pub mod serve;
pub mod site;
pub mod stage;
pub mod wire;

/// Waits until a condition holds, and fails the test when it does not in time (10 s unless told). The condition is an
/// expression, which may await; it is evaluated every 10 ms. Further arguments are the message, as in `assert!`.
///
/// ```ignore
/// eventually!(pool.idle() == 1);
/// eventually!(within Duration::from_secs(1), client.is_closed().await, "the client still lives");
/// ```
#[macro_export]
macro_rules! eventually {
    (within $timeout:expr, $condition:expr $(, $($message:tt)+)?) => {{
        let timeout: std::time::Duration = $timeout;
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            if $condition {
                break;
            }
            if tokio::time::Instant::now() >= deadline {
                $(eprintln!($($message)+);)?
                panic!("not within {timeout:?}: {}", stringify!($condition));
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }};
    ($condition:expr $(, $($message:tt)+)?) => {
        $crate::eventually!(within std::time::Duration::from_secs(10), $condition $(, $($message)+)?)
    };
}
