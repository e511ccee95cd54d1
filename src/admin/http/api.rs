//! The JSON API under `/api/v1/`. `openapi.json` documents it; a test holds it against the routes.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Extension, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::{Caller, Peer, Right, access};
use crate::admin::console::{Proxy, View};
use crate::admin::states;
use crate::admin::survey::{Look, Selection, State as Shown};
use crate::config::TenantState;
use crate::tenant::Standing;

/// Who sets a state through the API, as reports and the log name it.
const OPERATOR: &str = "api";
/// Longest body of a request, in bytes.
const MAX_BODY: usize = 16 * 1024;
/// From the end of a request's head to its answer.
const DEADLINE: Duration = Duration::from_secs(10);

type Shared = Arc<dyn Proxy>;
type Routes = [(&'static str, MethodRouter<Shared>); 5];

/// What needs a right, by path.
fn needing_a_right() -> Routes {
    [
        ("/api/v1/tenants", get(tenants)),
        ("/api/v1/tenants/{id}", get(tenant)),
        ("/api/v1/tenants/{id}/state", put(set_state)),
        ("/api/v1/tenants/{id}/schema-changed", post(schema_changed)),
        ("/api/v1/instances", get(instances)),
    ]
}

/// The routes of the API, to be merged with the others.
pub fn routes(proxy: Shared) -> Router {
    let routes = needing_a_right().into_iter().fold(Router::new(), |router, (path, route)| router.route(path, route));
    guarded(routes.with_state(proxy.clone()), proxy, Right::Operate).route("/api/v1/openapi.json", get(openapi))
}

/// These routes for those who have the right; what they do is over within seconds.
pub fn guarded(routes: Router, proxy: Arc<dyn Proxy>, right: Right) -> Router {
    routes.layer(middleware::from_fn_with_state((proxy, right), guard)).layer(DefaultBodyLimit::max(MAX_BODY))
}

/// The paths of [`routes`], for the test that holds all of them against the document.
#[cfg(test)]
pub(crate) fn paths() -> Vec<&'static str> {
    let plain = ["/metrics", "/metrics/tenant/{id}", "/healthz", "/readyz", "/api/v1/openapi.json"];
    needing_a_right().iter().map(|(path, _)| *path).chain(plain).collect()
}

/// The document of all routes.
#[cfg(test)]
pub(crate) const DOCUMENT: &str = include_str!("openapi.json");

/// Lets in who may, and nobody for longer than the deadline.
async fn guard(
    State((proxy, right)): State<(Shared, Right)>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let (mut head, body) = request.into_parts();
    let allowed = access::check(&proxy.view().config.load().http, &peer, right, &head);
    head.extensions.insert(Caller::of(&peer));
    let answer = match allowed {
        Err(refused) => refused.answer().await,
        Ok(()) => match tokio::time::timeout(DEADLINE, next.run(Request::from_parts(head, body))).await {
            Ok(answer) => answer,
            Err(_) => error(StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time"),
        },
    };
    ([(header::CACHE_CONTROL, "no-store"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")], answer).into_response()
}

/// The answer to what cannot be done.
pub fn error(status: StatusCode, text: &str) -> Response {
    (status, Json(serde_json::json!({ "error": text }))).into_response()
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}

/// What `make` finds, on a thread that may take its time.
async fn answer<T: Serialize + Send + 'static>(
    proxy: Shared,
    make: impl FnOnce(&Look, View<'_>) -> Option<T> + Send + 'static,
) -> Response {
    let made = tokio::task::spawn_blocking(move || {
        let view = proxy.view();
        make(&view.survey.look(view), view)
    });
    match made.await {
        Ok(Some(found)) => Json(found).into_response(),
        Ok(None) => error(StatusCode::NOT_FOUND, "there is no such tenant"),
        Err(failure) => {
            tracing::warn!(error = %failure, "a request to the API failed");
            error(StatusCode::INTERNAL_SERVER_ERROR, "failed; see the log")
        }
    }
}

async fn tenants(State(proxy): State<Shared>, selection: Result<Query<Selection>, QueryRejection>) -> Response {
    match selection {
        Ok(Query(selection)) => answer(proxy, move |look, view| Some(look.tenants(&selection, view))).await,
        Err(rejection) => error(StatusCode::BAD_REQUEST, &rejection.body_text()),
    }
}

async fn tenant(State(proxy): State<Shared>, Path(id): Path<String>) -> Response {
    answer(proxy, move |look, view| look.detail(&id, view)).await
}

/// What a tenant's state is to be.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    /// None: what its record says.
    state: Option<TenantState>,
    /// What clients that are kept out are told.
    #[serde(default)]
    reason: Option<String>,
}

async fn set_state(
    State(proxy): State<Shared>,
    Path(id): Path<String>,
    wish: Result<Json<Wish>, JsonRejection>,
) -> Response {
    let Wish { state, reason } = match wish {
        Ok(Json(wish)) => wish,
        Err(rejection) => return error(rejection.status(), &rejection.body_text()),
    };
    let view = proxy.view();
    let Some(tenant) = view.registry.get(&id) else {
        return error(StatusCode::NOT_FOUND, "there is no such tenant");
    };
    let standing = state.map(|state| Standing::by(OPERATOR, state, reason));
    states::set(&tenant, standing, view.sessions, view.pools);
    Json(Shown::of(&tenant)).into_response()
}

/// Said by whoever changed the schema over a connection of its own, which the proxy does not see.
async fn schema_changed(State(proxy): State<Shared>, Path(id): Path<String>) -> Response {
    let view = proxy.view();
    let Some(tenant) = view.registry.get(&id) else {
        return error(StatusCode::NOT_FOUND, "there is no such tenant");
    };
    view.pools.schema_changed(&tenant);
    StatusCode::NO_CONTENT.into_response()
}

async fn instances(State(proxy): State<Shared>) -> Response {
    answer(proxy, |look, view| Some(look.instances(view))).await
}
