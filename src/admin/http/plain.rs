//! What needs no right: `/metrics`, `/healthz`, `/readyz`, and the page, which has no data in it.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tracing::warn;

use super::page;

/// What these routes show; implemented where everything is known, so that this module knows nobody above it.
pub trait Probe: Send + Sync + 'static {
    /// The text for `/metrics`, as made by `Metrics::encode`. Called on a thread that may block.
    fn metrics(&self) -> String;

    /// One tenant's figures in the same format, as made by `Metrics::encode_tenant`; none where there is no such tenant.
    fn tenant_metrics(&self, tenant: &str) -> Option<String>;

    /// Whether new clients are welcome: configuration loaded, listeners up, not draining.
    ///
    /// # Errors
    /// Why not, in words for an operator; sent as the body.
    fn ready(&self) -> Result<(), String>;
}

/// The routes, and the answer to unknown paths.
pub fn routes(probe: Arc<dyn Probe>) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/metrics", get(metrics))
        .route("/metrics/tenant/{id}", get(tenant_metrics))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .fallback(|| async { (StatusCode::NOT_FOUND, "not found; docs/OPERATING.md lists what there is\n") })
        .with_state(probe)
}

async fn metrics(State(probe): State<Arc<dyn Probe>>) -> Response {
    // Thousands of tenants take milliseconds: not on a thread that may serve clients.
    match tokio::task::spawn_blocking(move || probe.metrics()).await {
        Ok(text) => prometheus(text),
        Err(error) => {
            warn!(%error, "metrics could not be written");
            (StatusCode::INTERNAL_SERVER_ERROR, "metrics could not be written; see the log\n").into_response()
        }
    }
}

async fn tenant_metrics(State(probe): State<Arc<dyn Probe>>, Path(tenant): Path<String>) -> Response {
    match probe.tenant_metrics(&tenant) {
        Some(text) => prometheus(text),
        None => (StatusCode::NOT_FOUND, "there is no such tenant\n").into_response(),
    }
}

fn prometheus(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn ready(State(probe): State<Arc<dyn Probe>>) -> Response {
    match probe.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}
