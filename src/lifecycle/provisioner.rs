//! Whole instances, made by a program of the operator's when no tenant fits on those that there are.
//!
//! The program is asked by a request that has an id, and asked again by the same id until its answer is in a file of the
//! instances' folder: a run that was killed makes no second instance. The journal of it keeps the place for the tenant.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::instance::Instance;
use super::journal::Journal;
use super::placement::{self, Wish};
use super::site::Site;
use super::{Failure, faults, files, program};
use crate::config::Program;

const ACT: &str = "provision";
const WRITTEN: &str = "written";

/// What a program is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Request {
    /// 128 random bits.
    id: String,
    /// The name that it is to have here.
    instance: String,
    provisioner: String,
    tenant: String,
    region: Option<String>,
    tags: Vec<String>,
}

/// Beside the journals of tenants: a run on the tenant itself has its own.
fn folder(site: &Site) -> PathBuf {
    site.config.lifecycle.journal_dir.join("provision")
}

fn peek(site: &Site, tenant: &str) -> Option<Request> {
    let (_, request) = Journal::peek(&folder(site), tenant)?;
    serde_json::from_value(request).ok()
}

/// Tenants for which an instance is being made, or has a place kept.
pub fn tenants(site: &Site) -> Vec<String> {
    Journal::tenants(&folder(site))
}

/// The instance that was made for a tenant which is not there yet.
pub fn kept_for(site: &Site, tenant: &str) -> Option<String> {
    let instance = peek(site, tenant)?.instance;
    site.config.lifecycle.hosts.contains_key(&instance).then_some(instance)
}

/// The instances with a place that is kept, once for each.
pub fn kept(site: &Site) -> Vec<String> {
    tenants(site).iter().filter_map(|tenant| kept_for(site, tenant)).collect()
}

/// The tenant's own run keeps its place from now on.
pub fn placed(site: &Site, tenant: &str) -> Result<(), Failure> {
    if !tenants(site).iter().any(|kept| kept == tenant) {
        return Ok(());
    }
    faults::point(ACT, "placed")?;
    Journal::open(&folder(site), tenant)?.remove()
}

/// The program behind a name.
pub fn named<'a>(site: &'a Site, name: &str) -> Result<&'a Program, Failure> {
    let known = &site.config.lifecycle.provisioners;
    known.get(name).ok_or_else(|| {
        let known: Vec<&str> = known.keys().map(String::as_str).collect();
        Failure::Order(format!("no provisioner {name:?} in the configuration; there are: sql {}", known.join(" ")))
    })
}

/// Has an instance made for the tenant, or goes on with it; gives the site with the instance in it.
///
/// # Errors
/// [`Failure::Step`]: the same command asks again, by the same id. All others: nobody was asked.
pub async fn make(site: &Site, tenant: &str, name: &str, wish: Wish<'_>) -> Result<Site, Failure> {
    let program = named(site, name)?;
    let folder = folder(site);
    let mut journal = Journal::open(&folder, tenant)?;
    let request = match journal.begun::<Request>()? {
        Some((_, begun)) => {
            let same = begun.provisioner == name && begun.region.as_deref() == wish.region && begun.tags == wish.tags;
            if !same {
                return Err(Failure::Order(format!(
                    "tenant {tenant}: an instance is being made for it with other options; give the same command again, or \
                     remove {} to give it up",
                    folder.join(format!("{tenant}.jsonl")).display()
                )));
            }
            begun
        }
        None => begin(site, &mut journal, tenant, name, wish)?,
    };
    let made = carry_out(site, program, &request, wish, &mut journal).await.map_err(|cause| Failure::Step {
        step: "provision",
        cause: Box::new(cause),
        after: format!("give the same command again to ask again for request {}", request.id),
        undone: false,
    });
    site.recorded_with("instance provision", tenant, made, &format!("instance {}", request.instance))
}

fn begin(site: &Site, journal: &mut Journal, tenant: &str, name: &str, wish: Wish<'_>) -> Result<Request, Failure> {
    let half = || getrandom::u64().map_err(|_| Failure::NoRandomness);
    let id = format!("{:016x}{:016x}", half()?, half()?);
    let request = Request {
        instance: format!("{name}-{}", &id[..8]),
        id,
        provisioner: name.to_owned(),
        tenant: tenant.to_owned(),
        region: wish.region.map(str::to_owned),
        tags: wish.tags.to_vec(),
    };
    site.record("instance provision", tenant, "begun", &format!("provisioner {name}, request {}", request.id))?;
    journal.begin(ACT, &site.who, &request)?;
    Ok(request)
}

async fn carry_out(
    site: &Site,
    program: &Program,
    request: &Request,
    wish: Wish<'_>,
    journal: &mut Journal,
) -> Result<Site, Failure> {
    let path = site.config.lifecycle.instances_dir.join(format!("{}.toml", request.instance));
    if journal.done_at(WRITTEN).is_some() && path.exists() {
        return site.again();
    }
    faults::point(ACT, "asked")?;
    let question = json!({
        "version": 1, "action": "create", "request": request.id, "instance": request.instance,
        "tenant": request.tenant, "region": request.region, "tags": request.tags,
    });
    let answer = program::ask(program, question.to_string().as_bytes(), &[], site.remark).await?;
    faults::point(ACT, "answered")?;
    let wrong = |why: String| Failure::Tool { program: program.path.display().to_string(), why };
    let table = instance_of(&answer).map_err(wrong)?;
    let origin = format!("# Made by provisioner {} for request {}.\n", request.provisioner, request.id);
    write(&path, &format!("{origin}{table}"))?;
    let checked = check(site, request, wish).await;
    let checked = checked.map_err(|failure| match failure {
        Failure::Order(why) => wrong(format!("its answer is not taken: {why}")),
        other => other,
    });
    let site = match checked {
        Ok(site) => site,
        Err(failure) => {
            files::remove(&path).map_err(Failure::file("remove", &path))?;
            return Err(failure);
        }
    };
    faults::point(ACT, WRITTEN)?;
    journal.done(WRITTEN)?;
    Ok(site)
}

/// The answer is what would stand in `[instances.<name>]`.
fn instance_of(answer: &[u8]) -> Result<toml::Table, String> {
    let value: serde_json::Value =
        serde_json::from_slice(answer).map_err(|error| format!("its answer is no JSON: {error}"))?;
    if !value.is_object() {
        return Err("its answer is no JSON object with the keys of [instances.*]".to_owned());
    }
    // The error of the conversion does not repeat values.
    toml::Table::try_from(value)
        .map_err(|_| "its answer has values that a configuration cannot have, such as null".to_owned())
}

/// The configuration takes it, the wish fits it, and it is there.
async fn check(site: &Site, request: &Request, wish: Wish<'_>) -> Result<Site, Failure> {
    let site = site.again()?;
    let wish = Wish { instance: Some(&request.instance), ..wish };
    placement::place(&site.config.lifecycle.hosts, &Default::default(), wish).map_err(Failure::Order)?;
    let host = &site.config.lifecycle.hosts[&request.instance];
    Instance::new(host, 1)?.session().await?;
    Ok(site)
}

/// A new folder belongs to whom the one around it does: the proxy has to read it.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        std::fs::create_dir_all(folder).map_err(Failure::file("make", folder))?;
        let around = folder.parent().filter(|around| !around.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Ok(around) = std::fs::metadata(around) {
            let _ = chown(folder, Some(around.uid()), Some(around.gid()));
        }
    }
    files::replace(path, text.as_bytes()).map_err(Failure::file("write", path))
}

/// Held while somebody has an instance made: who waits may find room on it.
pub fn line(site: &Site) -> Result<File, Failure> {
    let dir = folder(site);
    std::fs::create_dir_all(&dir).map_err(Failure::file("make", &dir))?;
    let file = File::open(&dir).map_err(Failure::file("open", &dir))?;
    file.lock().map_err(Failure::file("lock", &dir))?;
    Ok(file)
}
