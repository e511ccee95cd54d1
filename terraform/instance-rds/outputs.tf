output "instance" {
  description = "The table for proxy.toml."
  value       = <<-TOML
    [instances.${var.name}]
    host = ${jsonencode(aws_db_instance.this.address)}
    port = ${aws_db_instance.this.port}
    tls = "verify-full"
    tls_ca = ${jsonencode(var.ca_file)}
    max_backends = ${var.max_backends}
    region = ${jsonencode(var.region)}
    tags = ${jsonencode(var.tags)}
    wal_retention = "${var.backup_days}d"

    [instances.${var.name}.admin]
    user = ${jsonencode(var.admin_user)}
    password = { file = ${jsonencode(var.password_file)} }
  TOML
}

output "admin_password_secret" {
  description = "The secret in AWS Secrets Manager that holds the admin's password."
  value       = aws_db_instance.this.master_user_secret[0].secret_arn
}
