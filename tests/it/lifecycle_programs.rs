//! Programs of the operator's: one that makes instances, and one that gets new passwords.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::ground::{Ground, password};
use crate::harness::postgres::{self, Postgres};

const CREATE: [&str; 8] = ["tenant", "create", "acme", "--region", "eu", "--provisioner", "cloud", "--json"];

/// Instance `one` is full; `cloud` makes the other one.
struct Cloud {
    ground: Ground,
    two: Postgres,
    dir: PathBuf,
}

impl Cloud {
    async fn new() -> Cloud {
        let two = postgres::start().await;
        two.sql("postgres", "CREATE ROLE keeper LOGIN SUPERUSER PASSWORD 'k'").await.unwrap();
        let changes = [
            ("instances.one.max_tenants", 0.into()),
            ("provisioner.cloud.kind", "exec".into()),
            ("provisioner.cloud.program", "cloud".into()),
            ("provisioner.cloud.timeout", "10s".into()),
        ];
        let ground = Ground::with_admin("SUPERUSER", &changes).await;
        let dir = ground.proxy.files.dir().to_owned();
        let cloud = Cloud { ground, two, dir };
        let asked = cloud.dir.join("asked");
        let answer = cloud.dir.join("answer");
        program(
            &cloud.dir.join("cloud"),
            &format!("cat >> {0}; echo >> {0}; echo making it >&2; cat {1}", asked.display(), answer.display()),
        );
        cloud.answer(&cloud.instance());
        cloud
    }

    fn instance(&self) -> Value {
        let password = self.dir.join("keeper.password");
        json!({
            "host": "127.0.0.1", "port": self.two.port(), "region": "eu", "tags": ["ssd"], "max_tenants": 2,
            "admin": { "user": "keeper", "password": { "file": password } },
        })
    }

    fn answer(&self, answer: &Value) {
        std::fs::write(self.dir.join("answer"), answer.to_string()).unwrap();
    }

    /// What the program was asked, each time.
    fn asked(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.join("asked")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn instances(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.join("instances.d")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    fn journals(&self) -> usize {
        std::fs::read_dir(self.dir.join("lifecycle.d/provision")).into_iter().flatten().count()
    }
}

fn program(path: &Path, script: &str) {
    // Under another name first: a script that is still open for writing cannot be run.
    let written = path.with_extension("new");
    std::fs::write(&written, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&written, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(written, path).unwrap();
}

fn told(printed: &str) -> Value {
    serde_json::from_str(printed.trim()).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

#[tokio::test]
async fn an_instance_is_made_where_none_has_room() {
    let cloud = Cloud::new().await;
    let ground = &cloud.ground;
    let (status, why) = ground.refused(&["tenant", "create", "acme", "--region", "eu"]).await;
    assert!(status == 2 && why.contains("one is full"), "{status} {why}");
    let planned = ground.done(&["tenant", "create", "acme", "--provisioner", "cloud", "--dry-run"]).await;
    assert!(planned.contains("on an instance that provisioner cloud makes (one is full"), "{planned}");
    let (status, why) = ground.refused(&["tenant", "create", "acme", "--provisioner", "moon"]).await;
    assert!(status == 2 && why.contains("no provisioner \"moon\""), "{status} {why}");
    assert_eq!((cloud.asked().len(), cloud.journals()), (0, 0));

    let output = ground.run(&CREATE).await;
    let (said, printed) = (String::from_utf8(output.stderr).unwrap(), String::from_utf8(output.stdout).unwrap());
    assert!(output.status.success() && said.contains("cloud: making it"), "{said}");
    let asked = &cloud.asked()[0];
    assert_eq!(
        (&asked["action"], &asked["region"], &asked["tenant"]),
        (&"create".into(), &"eu".into(), &"acme".into())
    );
    let name = asked["instance"].as_str().unwrap();
    assert_eq!(cloud.instances(), [format!("{name}.toml")]);
    let made = told(&printed);
    assert_eq!(made["instance"], name);
    assert!(made["smoke"].as_str().unwrap().contains("logged in through the proxy"), "{printed}");
    ground.log_in("acme", "acme_app", &password(&printed, "acme_app")).await;
    assert_eq!((ground.left().await, cloud.journals()), (vec![], 0));
    let there =
        cloud.two.sql("postgres", "SELECT count(*)::text FROM pg_database WHERE datname = 'acme'").await.unwrap();
    assert_eq!(there[0][0].as_deref(), Some("1"));

    // It has room for one more, and what a folder asks for beyond that is made.
    let folder = cloud.dir.join("wanted");
    std::fs::create_dir(&folder).unwrap();
    for tenant in ["globex", "initech"] {
        std::fs::write(folder.join(format!("{tenant}.toml")), "region = \"eu\"\nprovisioner = \"cloud\"\n").unwrap();
    }
    let folder = folder.to_str().unwrap();
    let planned = ground.done(&["tenant", "apply", "-f", folder, "--dry-run"]).await;
    assert!(planned.contains(&format!("+ globex: make it on instance {name}")), "{planned}");
    assert!(planned.contains("+ initech: make it on an instance that provisioner cloud makes"), "{planned}");
    let applied = ground.done(&["tenant", "apply", "-f", folder]).await;
    assert!(applied.contains("2 made, 0 changed, 0 unchanged, 0 failed"), "{applied}");
    assert_eq!((cloud.asked().len(), cloud.instances().len(), cloud.journals()), (2, 2, 0));
    assert!(ground.done(&["audit", "verify"]).await.starts_with("ok "));
}

#[tokio::test]
async fn a_killed_run_asks_again_by_the_same_request() {
    let cloud = Cloud::new().await;
    for point in ["asked", "answered", "written", "placed"] {
        let (status, why) = cloud.ground.struck(&format!("provision:{point}"), &CREATE).await;
        assert_eq!(status, None, "{point}: killed: {why}");
        let listed = cloud.ground.done(&["tenant", "list"]).await;
        assert!(listed.contains("acme                     unfinished"), "{point}: {listed}");
        assert_eq!(cloud.journals(), 1, "{point}");
    }
    let asked = cloud.asked();
    assert!(asked.len() >= 2 && asked.iter().all(|it| it["request"] == asked[0]["request"]), "{asked:?}");
    assert_eq!(cloud.instances().len(), 1);
    // Its place is nobody else's, and it is not made for other wishes.
    let (status, why) = cloud.ground.refused(&["tenant", "create", "acme", "--provisioner", "cloud"]).await;
    assert!(status == 2 && why.contains("not finished"), "{status} {why}");
    let printed = cloud.ground.done(&CREATE).await;
    assert_eq!(told(&printed)["resumed"], true);
    assert_eq!((cloud.instances().len(), cloud.journals(), cloud.ground.files_left().len()), (1, 0, 2));
}

#[tokio::test]
async fn an_answer_that_is_not_right_changes_nothing() {
    let cloud = Cloud::new().await;
    let changed = |key: &str, value: Value| {
        let mut answer = cloud.instance();
        answer[key] = value;
        answer
    };
    for (answer, expected) in [
        (json!("fine"), "no JSON object"),
        (changed("region", "us".into()), "has region \"us\", not \"eu\""),
        (changed("colour", "red".into()), "unknown key"),
        (changed("region", Value::Null), "such as null"),
        (changed("admin", json!({ "user": "keeper", "password": "hunter2" })), "a password is not written"),
        (changed("port", 1.into()), "127.0.0.1"),
    ] {
        cloud.answer(&answer);
        let (status, why) = cloud.ground.refused(&CREATE).await;
        assert!(status == 5 && why.contains(expected) && !why.contains("hunter2"), "{answer}: {status} {why}");
        assert!(why.contains("give the same command again to ask again for request "), "{why}");
        assert_eq!(cloud.instances(), Vec::<String>::new(), "{answer}");
    }
    program(&cloud.dir.join("cloud"), "echo no quota left >&2; exit 7");
    let (status, why) = cloud.ground.refused(&CREATE).await;
    assert!(status == 5 && why.contains("exit status: 7; it said: no quota left"), "{status} {why}");
    let asked = cloud.asked();
    assert!(asked.iter().all(|it| it["request"] == asked[0]["request"]), "{asked:?}");
}

/// A ground whose hook keeps what it gets in `given`, and fails where there is a file `sealed`.
async fn hooked() -> (Ground, PathBuf) {
    let changes =
        [("lifecycle.credentials_hook.program", "hook".into()), ("lifecycle.credentials_hook.timeout", "10s".into())];
    let ground = Ground::with_admin("SUPERUSER", &changes).await;
    let dir = ground.proxy.files.dir().to_owned();
    let script = format!(
        "cd {}; given=$(cat); if [ -e sealed ]; then echo \"sealed: $given\" >&2; exit 1; fi; echo \"$given\" > given; \
         env > environment; tr '\\0' ' ' < /proc/$$/cmdline > arguments",
        dir.display()
    );
    program(&dir.join("hook"), &script);
    (ground, dir)
}

fn given(dir: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join("given")).unwrap()).unwrap()
}

#[tokio::test]
async fn a_hook_gets_new_passwords_and_nobody_else_does() {
    let (ground, dir) = hooked().await;
    let printed = ground.done(&["tenant", "create", "acme", "--region", "eu", "--json"]).await;
    let told = told(&printed);
    assert_eq!((&told["given_to_hook"], &told["passwords"]), (&true.into(), &Value::Null), "{printed}");
    let given_now = given(&dir);
    let first = given_now["roles"]["acme_app"]["password"].as_str().unwrap().to_owned();
    assert_eq!((&given_now["act"], &given_now["database"]), (&"create".into(), &"acme".into()));
    ground.log_in("acme", "acme_app", &first).await;
    for file in ["environment", "arguments", "audit.jsonl"] {
        let text = std::fs::read_to_string(dir.join(file)).unwrap();
        assert!(!text.contains(&first), "{file}");
    }
    let shown = ground.done(&["tenant", "create", "globex"]).await;
    assert!(shown.contains("were given to the credentials hook") && !shown.contains("password ="), "{shown}");

    let planned = ground.done(&["tenant", "rotate-credentials", "acme", "--dry-run"]).await;
    assert!(planned.contains("would give new passwords to acme_app, acme_ro"), "{planned}");
    let rotated = ground.done(&["tenant", "rotate-credentials", "acme"]).await;
    assert!(rotated.contains("were given to the credentials hook"), "{rotated}");
    let given_now = given(&dir);
    assert_eq!((&given_now["act"], given_now["old_valid_until"].is_string()), (&"rotate-credentials".into(), true));
    let second = given_now["roles"]["acme_app"]["password"].as_str().unwrap().to_owned();
    ground.proxy.reload().unwrap();
    assert_ne!(first, second);
    ground.log_in("acme", "acme_app", &second).await;
    ground.log_in("acme", "acme_app", &first).await;
    let planned = ground.done(&["tenant", "rotate-credentials", "acme", "--finish", "--dry-run"]).await;
    assert!(planned.contains("would end the old passwords of acme_app, acme_ro"), "{planned}");
    ground.log_in("acme", "acme_app", &first).await;

    // A file instead of the hook.
    let file = dir.join("initech.credentials");
    let file = file.to_str().unwrap();
    ground.done(&["tenant", "create", "initech", "--credentials", file]).await;
    assert_eq!(given(&dir)["tenant"], "acme");
}

#[tokio::test]
async fn a_hook_that_fails_is_called_again() {
    let (ground, dir) = hooked().await;
    std::fs::write(dir.join("sealed"), "").unwrap();
    let wanted = dir.join("wanted");
    std::fs::create_dir(&wanted).unwrap();
    std::fs::write(wanted.join("globex.toml"), "").unwrap();
    let create = ["tenant", "create", "acme"];
    let rotate = ["tenant", "rotate-credentials", "acme"];
    let apply = ["tenant", "apply", "-f", wanted.to_str().unwrap()];
    for (command, status_wanted, tenant) in
        [(&create[..], 5, "acme"), (&rotate[..], 5, "acme"), (&apply[..], 3, "globex")]
    {
        std::fs::write(dir.join("sealed"), "").unwrap();
        let (status, why) = ground.refused(command).await;
        assert_eq!(status, status_wanted, "{why}");
        assert!(why.contains("credentials hook: ") && why.contains("exit status: 1; it said: sealed: "), "{why}");
        assert!(why.contains("[secret]") && why.contains("give the same command again"), "{why}");
        std::fs::remove_file(dir.join("sealed")).unwrap();
        ground.done(command).await;
        ground.proxy.reload().unwrap();
        let given = given(&dir);
        assert_eq!(given["tenant"], tenant);
        let app = given["roles"][format!("{tenant}_app")]["password"].as_str().unwrap().to_owned();
        ground.log_in(tenant, &format!("{tenant}_app"), &app).await;
        // Killed behind the hook: the one after it counts.
        if command != apply {
            continue;
        }
        let (status, _) = ground.struck("hook:given", &rotate).await;
        assert_eq!(status, None);
        ground.done(&rotate).await;
    }
    assert!(ground.done(&["audit", "verify"]).await.starts_with("ok "));
}
