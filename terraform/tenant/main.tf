# A tenant: described here, made and changed by `pgtenant tenant apply`, and erased or suspended when it is destroyed.
#
# It uses nothing but Terraform's own terraform_data, and the pgtenant program on the machine that Terraform runs on.

terraform {
  required_version = ">= 1.6"
}

locals {
  # JSON's strings, numbers, flags and lists are TOML's as well.
  lines = concat(
    [for key in ["instance", "region", "tier", "template"] : "${key} = ${jsonencode(var.place[key])}" if var.place[key] != null],
    ["tags = ${jsonencode(var.tags)}", "extensions = ${jsonencode(var.extensions)}", "[settings]"],
    [for name, value in var.settings : "${jsonencode(name)} = ${jsonencode(value)}"],
    flatten([for table, keys in var.record : concat(
      ["[record.${jsonencode(table)}]"],
      [for key, value in keys : "${jsonencode(key)} = ${jsonencode(value)}"]
    )]),
  )
  description = "${join("\n", local.lines)}\n"
}

# Its life: another id or instance is another tenant.
resource "terraform_data" "life" {
  triggers_replace = [var.id, var.place.instance]
  input = {
    program    = var.program
    config     = var.config
    id         = var.id
    on_destroy = var.on_destroy
    receipts   = var.receipts_dir
  }

  provisioner "local-exec" {
    when        = destroy
    interpreter = ["/bin/sh", "-eu", "-c"]
    environment = {
      PROGRAM    = self.input.program
      CONFIG     = self.input.config
      TENANT     = self.input.id
      ON_DESTROY = self.input.on_destroy
      RECEIPTS   = self.input.receipts
    }
    command = <<-SHELL
      case "$ON_DESTROY" in
        erase) exec "$PROGRAM" tenant erase "$TENANT" --config "$CONFIG" --confirm "$TENANT" --receipt "$RECEIPTS/$TENANT.json" ;;
        suspend) exec "$PROGRAM" tenant suspend "$TENANT" --config "$CONFIG" --reason "no longer in Terraform's configuration" ;;
      esac
    SHELL
  }
}

# What it is like: applied again whenever that changes. `tenant apply` may run any number of times.
resource "terraform_data" "description" {
  triggers_replace = [terraform_data.life.id, local.description]

  provisioner "local-exec" {
    interpreter = ["/bin/sh", "-eu", "-c"]
    environment = {
      PROGRAM     = var.program
      CONFIG      = var.config
      TENANT      = var.id
      DESCRIPTION = local.description
      CREDENTIALS = var.credentials_dir
      PROXY       = var.proxy
    }
    command = <<-SHELL
      folder=$(mktemp -d)
      trap 'rm -rf "$folder"' EXIT
      printf '%s' "$DESCRIPTION" > "$folder/$TENANT.toml"
      set -- tenant apply -f "$folder" --config "$CONFIG" --credentials-dir "$CREDENTIALS"
      [ -z "$PROXY" ] || set -- "$@" --proxy "$PROXY"
      "$PROGRAM" "$@"
    SHELL
  }
}
