output "instance" {
  description = "The table for proxy.toml. The certificate names no address: verify-ca is what can be had."
  value       = <<-TOML
    [instances.${var.name}]
    host = ${jsonencode(google_sql_database_instance.this.private_ip_address)}
    port = 5432
    tls = "verify-ca"
    tls_ca = ${jsonencode(var.ca_file)}
    max_backends = ${var.max_backends}
    region = ${jsonencode(var.region)}
    tags = ${jsonencode(var.tags)}
    wal_retention = "${var.log_days}d"

    [instances.${var.name}.admin]
    user = ${jsonencode(google_sql_user.admin.name)}
    password = { file = ${jsonencode(var.password_file)} }
  TOML
}

output "server_ca" {
  description = "The CA certificate of the instance, for ca_file."
  value       = google_sql_database_instance.this.server_ca_cert[0].cert
}
