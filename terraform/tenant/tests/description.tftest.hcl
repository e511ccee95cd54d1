# What `pgtenant tenant apply` is given; nothing is made.

variables {
  id              = "acme"
  config          = "/etc/pgtenant/proxy.toml"
  credentials_dir = "/root/credentials"
  place           = { region = "eu", tier = "gold" }
  extensions      = ["pgcrypto"]
  settings        = { statement_timeout = "30s" }
  record          = { quota = { max_clients = 7 }, pool = { queue_timeout = "5s", pin_check = true } }
}

run "describes_the_tenant" {
  command = plan

  assert {
    condition     = output.description == <<-TOML
      region = "eu"
      tier = "gold"
      tags = []
      extensions = ["pgcrypto"]
      [settings]
      "statement_timeout" = "30s"
      [record."pool"]
      "pin_check" = true
      "queue_timeout" = "5s"
      [record."quota"]
      "max_clients" = 7
    TOML
    error_message = "not as tenant apply reads it: ${output.description}"
  }
}

run "refuses_a_name_that_is_no_id" {
  command = plan

  variables {
    id = "Acme; rm"
  }

  expect_failures = [var.id]
}
