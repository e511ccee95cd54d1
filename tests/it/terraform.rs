//! The Terraform modules: formatted, and a tenant's whole life by `terraform test` where the program is installed.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::harness::ground::{Ground, text};

fn modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("terraform")
}

/// None, with a message, where there is no Terraform.
async fn terraform(folder: &Path) -> Option<Command> {
    let mut command = Command::new("terraform");
    match command.arg("version").output().await {
        Ok(output) if output.status.success() => {}
        _ => {
            eprintln!("terraform is not installed: its modules are not tested");
            return None;
        }
    }
    let mut command = Command::new("terraform");
    // What it says to its makers, and what a user has configured, are no part of this.
    command.current_dir(folder).env("CHECKPOINT_DISABLE", "1").env_remove("TF_CLI_CONFIG_FILE").kill_on_drop(true);
    Some(command)
}

#[tokio::test]
async fn the_modules_are_formatted() {
    let Some(mut command) = terraform(&modules()).await else { return };
    let output = command.args(["fmt", "-check", "-recursive", "-diff"]).output().await.unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[tokio::test]
async fn a_tenant_lives_and_ends_by_terraform() {
    let ground = Ground::new().await;
    let folder = ground.proxy.files.dir().join("module");
    std::fs::create_dir_all(folder.join("tests")).unwrap();
    for file in ["main.tf", "variables.tf", "outputs.tf", "tests/description.tftest.hcl", "tests/life.tftest.hcl"] {
        std::fs::copy(modules().join("tenant").join(file), folder.join(file)).unwrap();
    }
    let Some(mut init) = terraform(&folder).await else { return };
    let output = init.args(["init", "-no-color", "-input=false"]).output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));

    let receipts = ground.proxy.files.dir().join("receipts");
    std::fs::create_dir(&receipts).unwrap();
    let mut test = terraform(&folder).await.expect("it was there a moment ago");
    test.args(["test", "-no-color", "-verbose"])
        .env("TF_VAR_config", ground.proxy.files.dir().join("proxy.toml"))
        .env("TF_VAR_credentials_dir", &receipts)
        .env("TF_VAR_receipts_dir", &receipts)
        .env("TF_VAR_proxy", ground.proxy.address().to_string())
        .env("TF_VAR_program", env!("CARGO_BIN_EXE_pgtenant"));
    let output = test.output().await.unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success() && said.contains("4 passed, 0 failed"), "{said}");
    assert!(!said.contains("password = "), "{said}");

    // Destroyed, it is erased; what it was stands in the audit log.
    assert_eq!((ground.left().await, ground.files_left()), (vec![], vec![]));
    assert!(receipts.join("acme.json").exists());
    let log = std::fs::read_to_string(ground.proxy.files.dir().join("audit.jsonl")).unwrap();
    for act in ["tenant create", "tenant apply", "tenant erase"] {
        assert!(log.contains(&format!("\"what\":\"{act}\"")), "{act}: {log}");
    }
}
