//! `/api/v1/tenants` for those who make and erase them, and `/api/v1/operations`, where one asks how far it is.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Operations;
use super::act::{Act, Job};
use super::books::Refused;
use crate::admin::console::Proxy;
use crate::admin::http::{Caller, Right, error, guarded};
use crate::config;
use crate::drain::Phase;
use crate::lifecycle::apply::Wanted;
use crate::lifecycle::journal::Journal;
use crate::lifecycle::record;

#[derive(Clone)]
struct Api {
    operations: Arc<Operations>,
    proxy: Arc<dyn Proxy>,
}

fn paths() -> [(&'static str, MethodRouter<Api>); 5] {
    [
        ("/api/v1/tenants", post(create)),
        ("/api/v1/tenants/{id}", delete(erase)),
        ("/api/v1/tenants/{id}/rotate-credentials", post(rotate)),
        ("/api/v1/operations", get(all)),
        ("/api/v1/operations/{id}", get(one)),
    ]
}

/// The routes, to be merged with the others.
pub fn routes(operations: Arc<Operations>, proxy: Arc<dyn Proxy>) -> Router {
    let routes = paths().into_iter().fold(Router::new(), |router, (path, route)| router.route(path, route));
    guarded(routes.with_state(Api { operations, proxy: proxy.clone() }), proxy, Right::Lifecycle)
}

/// One that is misspelt must not turn a look into an act.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default)]
    dry_run: bool,
    /// Of an erase: the tenant's id once more.
    confirm: Option<String>,
    /// Of a rotation: end the old passwords now.
    finish: Option<bool>,
}

type Asked = Result<Query<Options>, QueryRejection>;

async fn create(
    State(api): State<Api>,
    Extension(by): Extension<Caller>,
    options: Asked,
    body: Result<Json<Map<String, Value>>, JsonRejection>,
) -> Response {
    let dry_run = match options {
        Ok(Query(Options { dry_run, confirm: None, finish: None })) => dry_run,
        Ok(_) => {
            return error(StatusCode::BAD_REQUEST, "confirm and finish are no parameters of a create; leave them out");
        }
        Err(rejection) => return error(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    let (tenant, wanted) = match body.map(|Json(body)| read(body)) {
        Ok(Ok(read)) => read,
        Ok(Err(why)) => return error(StatusCode::UNPROCESSABLE_ENTITY, &why),
        Err(rejection) => return error(rejection.status(), &rejection.body_text()),
    };
    // An unfinished one goes on.
    if api.is_known(&tenant) && !api.is_unfinished(&tenant) {
        let why =
            format!("id: tenant {tenant} exists already; nothing was changed. Take another id, or erase it first");
        return error(StatusCode::CONFLICT, &why);
    }
    api.order(Job { act: Act::Create(wanted), tenant, dry_run }, by)
}

/// The tenant's id and how it is wanted; or which key is wrong.
fn read(mut body: Map<String, Value>) -> Result<(String, Box<Wanted>), String> {
    let tenant = match body.remove("id") {
        Some(Value::String(tenant)) => tenant,
        Some(other) => return Err(format!("id: the tenant's id is a string, not {other}")),
        None => return Err("id: the tenant's id is missing".to_owned()),
    };
    config::check_id(&tenant).map_err(|message| format!("id: {tenant:?}: an id {message}"))?;
    let wanted =
        serde_path_to_error::deserialize(Value::Object(body)).map_err(|wrong| match wrong.path().to_string() {
            path if path == "." => wrong.inner().to_string(),
            path => format!("{path}: {}", wrong.inner()),
        })?;
    Ok((tenant, Box::new(wanted)))
}

async fn erase(
    State(api): State<Api>,
    Extension(by): Extension<Caller>,
    Path(tenant): Path<String>,
    options: Asked,
) -> Response {
    let (dry_run, confirm) = match options {
        Ok(Query(Options { dry_run, confirm, finish: None })) => (dry_run, confirm),
        Ok(_) => return error(StatusCode::BAD_REQUEST, "finish is no parameter of an erase; leave it out"),
        Err(rejection) => return error(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    if !api.is_known(&tenant) && !api.is_unfinished(&tenant) {
        return no_tenant(&tenant);
    }
    if !dry_run && confirm.as_ref() != Some(&tenant) {
        let why = format!(
            "confirm: nothing was changed; to erase tenant {tenant} say confirm={tenant}, to look dry_run=true"
        );
        return error(StatusCode::BAD_REQUEST, &why);
    }
    api.order(Job { act: Act::Erase, tenant, dry_run }, by)
}

async fn rotate(
    State(api): State<Api>,
    Extension(by): Extension<Caller>,
    Path(tenant): Path<String>,
    options: Asked,
) -> Response {
    let (dry_run, act) = match options {
        Ok(Query(Options { dry_run, confirm: None, finish })) => {
            (dry_run, if finish == Some(true) { Act::Finish } else { Act::Rotate })
        }
        Ok(_) => return error(StatusCode::BAD_REQUEST, "confirm is no parameter of a rotation; leave it out"),
        Err(rejection) => return error(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    if !api.is_known(&tenant) {
        return no_tenant(&tenant);
    }
    api.order(Job { act, tenant, dry_run }, by)
}

fn no_tenant(tenant: &str) -> Response {
    error(StatusCode::NOT_FOUND, &format!("there is no tenant {tenant:?}; GET /api/v1/tenants lists them"))
}

impl Api {
    /// Also one whose record the proxy has not taken over yet.
    fn is_known(&self, tenant: &str) -> bool {
        let view = self.proxy.view();
        let written = || record::path(&view.config.load().lifecycle.tenants_dir, tenant).exists();
        view.registry.get(tenant).is_some() || (config::check_id(tenant).is_ok() && written())
    }

    /// A run on it was killed, or is at work.
    fn is_unfinished(&self, tenant: &str) -> bool {
        let config = self.proxy.view().config.load();
        config::check_id(tenant).is_ok() && Journal::peek(&config.lifecycle.journal_dir, tenant).is_some()
    }

    fn order(&self, job: Job, Caller(by): Caller) -> Response {
        if self.proxy.view().drain.phase() != Phase::Running {
            return error(StatusCode::SERVICE_UNAVAILABLE, "the proxy is ending; ask the next one");
        }
        match self.operations.order(job, by) {
            Ok(seen) => {
                let location = format!("/api/v1/operations/{}", seen.id);
                (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(seen)).into_response()
            }
            Err(Refused::Working(id)) => conflict(&id, "works on this tenant; wait until it has ended"),
            Err(Refused::Unread(id)) => {
                conflict(&id, "has passwords of this tenant that nobody has read; read it first")
            }
            Err(Refused::Full) => {
                let answer =
                    error(StatusCode::SERVICE_UNAVAILABLE, "too many operations are unfinished; ask again later");
                ([(header::RETRY_AFTER, "10")], answer).into_response()
            }
            Err(Refused::NoRandomness) => {
                error(StatusCode::INTERNAL_SERVER_ERROR, "the system gives no random numbers")
            }
        }
    }
}

fn conflict(operation: &str, what: &str) -> Response {
    let text = format!("operation {operation} {what} (/api/v1/operations/{operation})");
    (StatusCode::CONFLICT, Json(json!({ "error": text, "operation": operation }))).into_response()
}

async fn all(State(api): State<Api>) -> Response {
    Json(json!({ "operations": api.operations.books().all() })).into_response()
}

/// The first look at passwords is the last; a HEAD is no look.
async fn one(State(api): State<Api>, method: Method, Path(id): Path<String>) -> Response {
    let (seen, unread) = {
        let mut books = api.operations.books();
        (books.look(&id), (method == Method::GET).then(|| books.take(&id)).flatten())
    };
    let Some(mut seen) = seen else {
        let why = "it ended a while ago, or the proxy has been started anew since; what it had begun goes on by the same request";
        return error(StatusCode::NOT_FOUND, &format!("there is no operation {id:?}: {why}"));
    };
    let Some(unread) = unread else { return Json(seen).into_response() };
    // The journal is removed, and the disk knows of it.
    match tokio::task::spawn_blocking(move || unread.read()).await {
        Ok(Ok(passwords)) => {
            if let Some(result) = &mut seen.result {
                result["passwords"] = passwords;
            }
            Json(seen).into_response()
        }
        Ok(Err(failure)) => Json(api.operations.books().fail(&id, &failure)).into_response(),
        Err(failure) => {
            tracing::warn!(error = %failure, "an operation's passwords could not be read");
            error(StatusCode::INTERNAL_SERVER_ERROR, "failed; see the log")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::admin::http;

    #[test]
    fn every_route_is_documented_and_no_other() {
        let document: Value = serde_json::from_str(http::DOCUMENT).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let documented: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let routes: BTreeSet<&str> = paths().iter().map(|(path, _)| *path).chain(http::paths()).collect();
        assert_eq!(documented, routes);
    }
}
