variable "name" {
  description = "The instance's name, in Google Cloud and in proxy.toml."
  type        = string
}

variable "region" {
  description = "What pgtenant calls the place: tenants that are pinned to it are placed here."
  type        = string
}

variable "cloud_region" {
  description = "What Google calls it, such as europe-west3."
  type        = string
}

variable "major_version" {
  type    = string
  default = "17"
}

variable "machine" {
  type    = string
  default = "db-custom-2-8192"
}

variable "storage_gb" {
  type    = number
  default = 100
}

variable "regional" {
  description = "With a standby in another zone."
  type        = bool
  default     = true
}

variable "network" {
  description = "The VPC network, by its self link; private services access must be set up there."
  type        = string
}

variable "admin_user" {
  description = "Becomes a member of cloudsqlsuperuser, which may make roles and databases."
  type        = string
  default     = "pgtenant_admin"
}

variable "admin_password" {
  description = "Is in Terraform's state, as the provider wants it: keep that where secrets are kept."
  type        = string
  sensitive   = true
}

variable "max_backends" {
  description = "What pgtenant may open."
  type        = number
  default     = 400
}

variable "reserved_connections" {
  description = "On top of that: for Google itself, migrations and people."
  type        = number
  default     = 40
}

variable "tags" {
  description = "What tenants may ask for."
  type        = list(string)
  default     = []
}

variable "log_days" {
  description = "How long WAL archives are kept (1 to 7): also what an erased tenant's receipt says remains."
  type        = number
  default     = 7
}

variable "ca_file" {
  description = "Where the proxy finds the instance's CA certificate; write the output server_ca there."
  type        = string
}

variable "password_file" {
  description = "Where the proxy's machine has the admin's password."
  type        = string
}
