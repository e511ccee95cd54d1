# A PostgreSQL instance on Google Cloud SQL as a place for tenants, and the table that proxy.toml needs of it.

terraform {
  required_version = ">= 1.6"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 5.0"
    }
  }
}

resource "google_sql_database_instance" "this" {
  name                = var.name
  database_version    = "POSTGRES_${var.major_version}"
  region              = var.cloud_region
  deletion_protection = true

  settings {
    tier              = var.machine
    availability_type = var.regional ? "REGIONAL" : "ZONAL"
    disk_autoresize   = true
    disk_size         = var.storage_gb

    backup_configuration {
      enabled                        = true
      point_in_time_recovery_enabled = true
      transaction_log_retention_days = var.log_days
    }

    ip_configuration {
      ipv4_enabled    = false
      private_network = var.network
      ssl_mode        = "ENCRYPTED_ONLY"
    }

    database_flags {
      name  = "max_connections"
      value = tostring(var.max_backends + var.reserved_connections)
    }

    database_flags {
      name  = "password_encryption"
      value = "scram-sha-256"
    }
  }
}

resource "google_sql_user" "admin" {
  name     = var.admin_user
  instance = google_sql_database_instance.this.name
  password = var.admin_password
}
