//! The SCRAM client against RFC 7677's numbers, our own server, and an instance that misbehaves.

use proptest::prelude::*;

use super::*;
use crate::auth::scram_server::{ScramError, ScramServer};
use crate::auth::verifier::ScramVerifier;

const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

fn client(secret: ClientSecret) -> ScramClient {
    ScramClient::with_nonce(secret, None, false, NONCE.into())
}

fn pencil() -> (ScramVerifier, ScramKeys) {
    ScramVerifier::from_password("pencil", &decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), 4096)
}

#[test]
fn salt_and_iterations_of_rfc_7677() {
    let (mechanism, first) = client(ClientSecret::password("pencil")).first();
    assert_eq!((mechanism, first.as_slice()), (SCRAM_SHA_256, format!("n,,n=,r={NONCE}").as_bytes()));
    let (_, from_password) = client(ClientSecret::password("pencil")).server_first(SERVER_FIRST.as_bytes()).unwrap();
    let (_, from_keys) = client(ClientSecret::Keys(pencil().1)).server_first(SERVER_FIRST.as_bytes()).unwrap();
    assert_eq!(from_password, from_keys);
    // The RFC's own proof has `n=user` in its AuthMessage; the server's tests hold it against ours.
    let user_proof = {
        let message = format!("n=user,r={NONCE},{SERVER_FIRST},c=biws,{}", SERVER_FIRST.split(',').next().unwrap());
        let keys = pencil().1;
        encode(&*xor(&keys.client_key, &hmac(&sha256(&*keys.client_key), &[message.as_bytes()])))
    };
    assert_eq!(user_proof, "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
}

/// A whole login at our own server.
fn login(
    secret: ClientSecret,
    verifier: ScramVerifier,
    binding: [Option<Vec<u8>>; 2],
) -> Result<ScramKeys, ScramError> {
    let [ours, theirs] = binding;
    let server = ScramServer::new(verifier, true, theirs);
    let client = ScramClient::new(secret, ours, server.mechanisms().contains(&SCRAM_SHA_256_PLUS));
    let (mechanism, first) = client.first();
    let (server, first) = server.client_first(mechanism, &first)?;
    let (client, last) = client.server_first(&first).unwrap();
    let (proven, last) = server.client_final(&last)?;
    let keys = client.server_final(&last).unwrap();
    assert_eq!(proven.verifier(), keys.verifier());
    Ok(proven)
}

#[test]
fn keys_that_a_client_proved_log_a_backend_in() {
    let (verifier, _) = ScramVerifier::generate("secret");
    for binding in [None, Some(vec![1; 32]), Some(vec![1; 48])] {
        let both = || [binding.clone(), binding.clone()];
        let proven = login(ClientSecret::password("secret"), verifier.clone(), both()).unwrap();
        login(ClientSecret::Keys(proven), verifier.clone(), both()).unwrap();
    }
}

#[test]
fn wrong_password_and_foreign_channel_are_refused() {
    let (verifier, _) = ScramVerifier::generate("secret");
    let wrong = login(ClientSecret::password("Secret"), verifier.clone(), [None, None]);
    assert_eq!(wrong.unwrap_err(), ScramError::Failed);
    let foreign = login(ClientSecret::password("secret"), verifier.clone(), [Some(vec![1; 32]), Some(vec![2; 32])]);
    assert!(matches!(foreign, Err(ScramError::Binding(_))));
    // Only one side can bind: plain SCRAM, no complaint.
    login(ClientSecret::password("secret"), verifier.clone(), [Some(vec![1; 32]), None]).unwrap();
    login(ClientSecret::password("secret"), verifier, [None, Some(vec![1; 32])]).unwrap();
}

#[test]
fn keys_of_another_verifier_are_named_as_such() {
    for keys in [ScramVerifier::generate("pencil").1, ScramKeys { iterations: 4097, ..pencil().1 }] {
        let error = client(ClientSecret::Keys(keys)).server_first(SERVER_FIRST.as_bytes()).map(|_| ()).unwrap_err();
        assert_eq!(error, ScramClientError::OtherVerifier);
        assert!(error.to_string().contains("is not the instance's"));
    }
}

#[test]
fn refuses_malformed_server_messages() {
    let long = format!("{SERVER_FIRST},x={}", "x".repeat(MAX_MESSAGE));
    for data in [
        "",
        "r=",
        "s=W22Z,i=1",
        "r=other,s=W22Z,i=4096",
        "r=rOprNGfwEbeRWgbNEkqO,s=W22Z,i=4096",
        "r=rOprNGfwEbeRWgbNEkqOx,s=*,i=4096",
        "r=rOprNGfwEbeRWgbNEkqOx,i=4096,s=W22Z",
        "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z",
        "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=0",
        "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=-1",
        "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=x",
        "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=1,",
        "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=1,m=x",
        "m=x,r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=1",
        &long,
    ] {
        let result = client(ClientSecret::password("x")).server_first(data.as_bytes());
        assert!(matches!(result, Err(ScramClientError::Malformed(_))), "{data}");
    }
    for iterations in [u64::from(MAX_ITERATIONS) + 1, u64::from(u32::MAX) + 2] {
        let data = format!("r={NONCE}x,s=W22Z,i={iterations}");
        let result = client(ClientSecret::password("x")).server_first(data.as_bytes()).map(|_| ());
        assert_eq!(result, Err(ScramClientError::Iterations(iterations)));
    }
}

#[test]
fn refuses_an_instance_that_does_not_know_the_verifier() {
    let sent = || client(ClientSecret::Keys(pencil().1)).server_first(SERVER_FIRST.as_bytes()).unwrap().0;
    let outcome = |data: &str| sent().server_final(data.as_bytes()).map(|_| ()).unwrap_err();
    assert_eq!(outcome(&format!("v={}", encode(&[0; 32]))), ScramClientError::ServerSignature);
    assert_eq!(outcome("e=invalid-proof"), ScramClientError::Refused);
    for data in ["", "v=", "v=AAAA", "x", "v=*"] {
        assert!(matches!(outcome(data), ScramClientError::Malformed(_)), "{data}");
    }
}

proptest! {
    #[test]
    fn every_password_logs_in(password in "\\PC{0,20}", salt in prop::collection::vec(any::<u8>(), 0..40), iterations in 1u32..5) {
        let (verifier, keys) = ScramVerifier::from_password(&password, &salt, iterations);
        prop_assert_eq!(ScramVerifier::parse(&verifier.to_text()).unwrap(), verifier.clone());
        prop_assert!(verifier.check_password(password.as_bytes()).is_some());
        prop_assert!(login(ClientSecret::password(&password), verifier.clone(), [None, None]).is_ok());
        prop_assert!(login(ClientSecret::Keys(keys), verifier, [None, None]).is_ok());
    }

    #[test]
    fn random_bytes_never_panic(first in prop::collection::vec(any::<u8>(), 0..80), last in prop::collection::vec(any::<u8>(), 0..80)) {
        prop_assert!(client(ClientSecret::Keys(pencil_fast())).server_first(&first).is_err());
        let sent = ClientFinalSent { server_signature: Zeroizing::new([0; 32]), keys: pencil_fast() };
        prop_assert!(sent.server_final(&last).is_err());
    }
}

fn pencil_fast() -> ScramKeys {
    ScramKeys::derive(b"pencil", b"salt", 1)
}
