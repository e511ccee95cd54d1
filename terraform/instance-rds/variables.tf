variable "name" {
  description = "The instance's name, in AWS and in proxy.toml."
  type        = string
}

variable "region" {
  description = "What pgtenant calls the place: tenants that are pinned to it are placed here."
  type        = string
}

variable "major_version" {
  type    = string
  default = "17"
}

variable "instance_class" {
  type    = string
  default = "db.m7g.large"
}

variable "storage_gb" {
  type    = number
  default = 100
}

variable "max_storage_gb" {
  type    = number
  default = 1000
}

variable "admin_user" {
  description = "Becomes a member of rds_superuser, which may make roles and databases."
  type        = string
  default     = "pgtenant_admin"
}

variable "max_backends" {
  description = "What pgtenant may open."
  type        = number
  default     = 400
}

variable "reserved_connections" {
  description = "On top of that: for AWS itself, migrations and people."
  type        = number
  default     = 40
}

variable "tags" {
  description = "What tenants may ask for."
  type        = list(string)
  default     = []
}

variable "subnet_group" {
  type = string
}

variable "security_groups" {
  type = list(string)
}

variable "multi_az" {
  type    = bool
  default = true
}

variable "backup_days" {
  description = "How long backups are kept: also what an erased tenant's receipt says remains."
  type        = number
  default     = 14
}

variable "ca_file" {
  description = "Where the proxy finds AWS's CA certificates for RDS (global-bundle.pem)."
  type        = string
}

variable "password_file" {
  description = "Where the proxy's machine has the admin's password; take it there from the secret in the outputs."
  type        = string
}
