//! What operators ask the running process: the console as PgBouncer's; metrics, health, the API and the page over HTTP.

pub mod ask;
pub mod console;
pub mod health;
pub mod http;
pub mod states;
pub mod survey;
