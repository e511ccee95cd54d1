//! The cryptography under TLS, chosen by a feature of the build: aws-lc-rs, or ring.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

#[cfg(feature = "aws-lc")]
use rustls::crypto::aws_lc_rs as provider;
#[cfg(all(feature = "ring", not(feature = "aws-lc")))]
use rustls::crypto::ring as provider;

#[cfg(not(any(feature = "aws-lc", feature = "ring")))]
compile_error!("TLS needs cryptography: build with the feature `aws-lc` (default) or `ring`");

/// The provider for every TLS configuration. It is handed over explicitly each time: nothing is installed
/// process-wide, where the first library to do so would decide for all.
pub fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

/// Makes on the calling thread what the library makes for its first handshake, so that no client waits for it and nobody
/// beside it: aws-lc collects entropy from the jitter of the processor's timing, some 70 ms of a busy thread once in each
/// process, and seeds a generator for each thread from it.
pub fn warm_up() {
    let provider = crypto_provider();
    // What fails here fails again in the handshake that needs it, and is told there.
    let _ = provider.secure_random.fill(&mut [0; 32]);
    for group in &provider.kx_groups {
        let _ = group.start();
    }
}
