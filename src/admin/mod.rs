//! What operators ask the running process: metrics and health over HTTP.

pub mod health;
pub mod http;
