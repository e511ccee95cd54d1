# A PostgreSQL instance on Amazon RDS as a place for tenants, and the table that proxy.toml needs of it.

terraform {
  required_version = ">= 1.6"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

resource "aws_db_parameter_group" "this" {
  name   = "pgtenant-${var.name}"
  family = "postgres${var.major_version}"

  parameter {
    name         = "max_connections"
    value        = tostring(var.max_backends + var.reserved_connections)
    apply_method = "pending-reboot"
  }

  parameter {
    name  = "password_encryption"
    value = "scram-sha-256"
  }

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }
}

resource "aws_db_instance" "this" {
  identifier     = var.name
  engine         = "postgres"
  engine_version = var.major_version
  instance_class = var.instance_class

  allocated_storage     = var.storage_gb
  max_allocated_storage = var.max_storage_gb
  storage_encrypted     = true

  db_name                     = "postgres"
  username                    = var.admin_user
  manage_master_user_password = true

  parameter_group_name    = aws_db_parameter_group.this.name
  db_subnet_group_name    = var.subnet_group
  vpc_security_group_ids  = var.security_groups
  multi_az                = var.multi_az
  publicly_accessible     = false
  backup_retention_period = var.backup_days

  deletion_protection       = true
  skip_final_snapshot       = false
  final_snapshot_identifier = "${var.name}-final"
}
