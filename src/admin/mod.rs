//! What operators ask the running process: the console as PgBouncer's, metrics and health over HTTP.

pub mod console;
pub mod health;
pub mod http;
