# A tenant's whole life against a real instance; variables come from the environment (TF_VAR_config and so on), see
# tests/it/terraform.rs. Terraform destroys what a test has made: the tenant is erased in the end.

variables {
  id         = "acme"
  place      = { region = "eu", tier = "gold" }
  settings   = { statement_timeout = "30s" }
  record     = { quota = { max_clients = 7 } }
  on_destroy = "erase"
}

run "is_made" {
  assert {
    condition     = output.id == "acme" && fileexists(output.credentials)
    error_message = "no tenant, or no file with its passwords"
  }
}

run "is_changed_in_place" {
  variables {
    record = { quota = { max_clients = 9 } }
  }

  assert {
    condition     = terraform_data.life.id == run.is_made.life
    error_message = "a changed description made another tenant of it"
  }
}
