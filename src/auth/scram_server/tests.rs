//! The SCRAM server against RFC 7677's example, every malformed message we could think of, and random bytes.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const OUR_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const FINAL_START: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const PROOF: &str = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

fn verifier() -> ScramVerifier {
    static PENCIL: LazyLock<ScramVerifier> =
        LazyLock::new(|| ScramVerifier::from_password("pencil", &decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), 4096).0);
    PENCIL.clone()
}

fn after_first(genuine: bool) -> ServerFirstSent {
    let server = ScramServer::new(verifier(), genuine, None);
    let (next, first) = server.client_first_with_nonce(SCRAM_SHA_256, CLIENT_FIRST.as_bytes(), OUR_NONCE).unwrap();
    assert_eq!(
        String::from_utf8(first).unwrap(),
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    );
    next
}

fn first_error(binding: Option<&[u8]>, mechanism: &str, data: impl AsRef<[u8]>) -> ScramError {
    let server = ScramServer::new(verifier(), true, binding.map(<[u8]>::to_vec));
    server.client_first(mechanism, data.as_ref()).map(|_| ()).unwrap_err()
}

#[test]
fn example_of_rfc_7677() {
    let (keys, last) = after_first(true).client_final(format!("{FINAL_START},p={PROOF}").as_bytes()).unwrap();
    assert_eq!(last, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    assert_eq!(keys.verifier(), verifier());
}

#[test]
fn a_former_password_is_good_as_well_and_known_as_such() {
    let present = ScramVerifier::from_password("pen", verifier().salt(), 4096).0;
    let login = |verifier: ScramVerifier| {
        let server = ScramServer::new(verifier, true, None);
        let (next, _) = server.client_first_with_nonce(SCRAM_SHA_256, CLIENT_FIRST.as_bytes(), OUR_NONCE).unwrap();
        next.client_final(format!("{FINAL_START},p={PROOF}").as_bytes())
    };
    assert_eq!(login(present.clone()).unwrap_err(), ScramError::Failed);
    let lenient = present.clone().with_former(&verifier()).unwrap();
    let (keys, last) = login(lenient.clone()).unwrap();
    assert_eq!(last, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    assert!(!present.is_of(&keys) && verifier().is_of(&keys));
    assert!(lenient.check_password(b"pencil").is_some() && lenient.check_password(b"pen").is_some());
    assert!(lenient.check_password(b"pens").is_none() && present.check_password(b"pencil").is_none());
    // The exchange would have to know which one will come.
    assert!(present.with_former(&ScramVerifier::from_password("pencil", b"other salt", 4096).0).is_none());
}

#[test]
fn mock_fails_as_a_wrong_password_does() {
    let right = format!("{FINAL_START},p={PROOF}");
    let wrong = format!("{FINAL_START},p={}", encode(&[0; 32]));
    assert_eq!(after_first(false).client_final(right.as_bytes()).unwrap_err(), ScramError::Failed);
    assert_eq!(after_first(true).client_final(wrong.as_bytes()).unwrap_err(), ScramError::Failed);
    assert_eq!(ScramError::Failed.sqlstate(), "28P01");
}

#[test]
fn refuses_malformed_first_messages() {
    let long = format!("n,,n=,r={}", "x".repeat(MAX_MESSAGE));
    for data in [
        "",
        "n",
        "n,",
        "n,,",
        "x,,n=,r=abc",
        "n,x,n=,r=abc",
        "n,,r=abc,n=",
        "n,,n=",
        "n,,n=,r=",
        "n,,n=,r=a b",
        "n,,n=,r=é",
        "n,,n=,r=abc,",
        "n,,n=,r=abc,junk",
        "n,,n=,r=abc,=x",
        "N,,n=,r=abc",
        "nn,,n=,r=abc",
        "p=,,n=,r=abc",
        "p=tls-server-end-point,,n=,r=abc",
        &long,
    ] {
        assert!(matches!(first_error(None, SCRAM_SHA_256, data), ScramError::Malformed(_)), "{data:?}");
    }
    assert!(matches!(first_error(None, SCRAM_SHA_256, b"n,,n=\xff,r=abc"), ScramError::Malformed(_)));
}

#[test]
fn refuses_identity_and_mandatory_extensions() {
    for data in ["n,a=postgres,n=,r=abc", "n,,m=x,n=,r=abc", "n,,n=,r=abc,m=x"] {
        let error = first_error(None, SCRAM_SHA_256, data);
        assert!(matches!(error, ScramError::Unsupported(_)), "{data:?}: {error}");
    }
    let server = ScramServer::new(verifier(), true, None);
    assert!(server.client_first(SCRAM_SHA_256, b"n,,n=,r=abc,x=optional").is_ok());
}

#[test]
fn binding_rules() {
    let hash: &[u8] = &[1, 2, 3];
    let bare = "n=,r=abc";
    let first = |binding: Option<&[u8]>, mechanism, flag| {
        let server = ScramServer::new(verifier(), true, binding.map(<[u8]>::to_vec));
        server.client_first(mechanism, format!("{flag},,{bare}").as_bytes()).map(|_| ())
    };
    assert_eq!(first(Some(hash), SCRAM_SHA_256_PLUS, "p=tls-server-end-point"), Ok(()));
    assert_eq!(first(Some(hash), SCRAM_SHA_256, "n"), Ok(()));
    assert_eq!(first(None, SCRAM_SHA_256, "n"), Ok(()));
    assert_eq!(first(None, SCRAM_SHA_256, "y"), Ok(()));
    assert!(matches!(first(Some(hash), SCRAM_SHA_256, "y"), Err(ScramError::Binding(_))));
    for (binding, mechanism, flag) in [
        (Some(hash), SCRAM_SHA_256_PLUS, "n"),
        (Some(hash), SCRAM_SHA_256_PLUS, "y"),
        (Some(hash), SCRAM_SHA_256_PLUS, "p=tls-unique"),
        (Some(hash), SCRAM_SHA_256, "p=tls-server-end-point"),
        (None, SCRAM_SHA_256_PLUS, "p=tls-server-end-point"),
        (None, "SCRAM-SHA-1", "n"),
        (None, "", "n"),
    ] {
        assert!(matches!(first(binding, mechanism, flag), Err(ScramError::Malformed(_))), "{mechanism} {flag}");
    }
    let offered = |binding| ScramServer::new(verifier(), true, binding).mechanisms();
    assert_eq!(offered(Some(vec![1])), [SCRAM_SHA_256_PLUS, SCRAM_SHA_256]);
    assert_eq!(offered(None), [SCRAM_SHA_256]);
}

#[test]
fn refuses_malformed_final_messages() {
    let nonce = &FINAL_START[7..];
    for data in [
        String::new(),
        FINAL_START.into(),
        format!("{FINAL_START},p="),
        format!("{FINAL_START},p=AAAA"),
        format!("{FINAL_START},p=*{}", &PROOF[1..]),
        format!("{FINAL_START},p={PROOF},"),
        format!("{FINAL_START},p={PROOF},x=y"),
        format!("{FINAL_START}x,p={PROOF}"),
        format!("{},p={PROOF}", &FINAL_START[..FINAL_START.len() - 1]),
        format!("{nonce},c=biws,p={PROOF}"),
        format!("c=biws,p={PROOF}"),
        format!("c=eSws,{nonce},p={PROOF}"),
        format!("c=biw,{nonce},p={PROOF}"),
        format!("c=,{nonce},p={PROOF}"),
        format!("{FINAL_START},junk,p={PROOF}"),
        format!("{FINAL_START},,p={PROOF}"),
        format!("{FINAL_START},x={},p={PROOF}", "x".repeat(MAX_MESSAGE)),
    ] {
        let error = after_first(true).client_final(data.as_bytes()).unwrap_err();
        assert!(matches!(error, ScramError::Malformed(_)), "{data:?}: {error}");
    }
    let error = after_first(true).client_final(b"\xff,p=AAAA").unwrap_err();
    assert!(matches!(error, ScramError::Malformed(_)));
    let extended = format!("{FINAL_START},m=x,p={PROOF}");
    assert!(matches!(after_first(true).client_final(extended.as_bytes()), Err(ScramError::Unsupported(_))));
}

#[test]
fn refuses_the_binding_of_another_channel() {
    let server = ScramServer::new(verifier(), true, Some(vec![1; 32]));
    let (next, first) = server.client_first(SCRAM_SHA_256_PLUS, b"p=tls-server-end-point,,n=,r=abc").unwrap();
    let first = String::from_utf8(first).unwrap();
    let nonce = first.split(',').next().unwrap();
    let mut input = b"p=tls-server-end-point,,".to_vec();
    input.extend([2; 32]);
    let data = format!("c={},{nonce},p={PROOF}", encode(&input));
    assert!(matches!(next.client_final(data.as_bytes()), Err(ScramError::Binding(_))));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(first in prop::collection::vec(any::<u8>(), 0..80), last in prop::collection::vec(any::<u8>(), 0..80)) {
        let server = ScramServer::new(ScramVerifier::mock(&[1; 32], "t", "r", 1), true, Some(vec![1]));
        let _ = server.client_first(SCRAM_SHA_256, &first);
        prop_assert!(after_first(true).client_final(&last).is_err());
    }

    #[test]
    fn random_messages_of_the_right_alphabet_never_panic(first in "[nypam=,r ab]{0,40}", last in "[crpm=,ab]{0,40}") {
        let server = ScramServer::new(ScramVerifier::mock(&[1; 32], "t", "r", 1), true, None);
        let _ = server.client_first(SCRAM_SHA_256, first.as_bytes());
        prop_assert!(after_first(true).client_final(last.as_bytes()).is_err());
    }
}
