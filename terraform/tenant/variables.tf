variable "id" {
  description = "The tenant's id."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9_-]{0,56}$", var.id))
    error_message = "An id has lower-case letters, digits, - and _, begins with a letter or digit, and has at most 57 characters."
  }
}

variable "config" {
  description = "The proxy.toml that the proxy runs with, as an absolute path; its folder of tenants must be writable from here."
  type        = string
}

variable "credentials_dir" {
  description = "Where new passwords are written, as <id>.credentials with mode 0600. They are never in Terraform's state or output."
  type        = string
}

variable "place" {
  description = "Where it is and which terms it has: the region and tier, an instance where no other will do, the database to copy."
  type = object({
    region   = optional(string)
    tier     = optional(string)
    instance = optional(string)
    template = optional(string)
  })
  default = {}
}

variable "tags" {
  description = "What its instance must have."
  type        = list(string)
  default     = []
}

variable "extensions" {
  description = "Extensions that are made in its database."
  type        = list(string)
  default     = []
}

variable "settings" {
  description = "Settings of its database, such as { statement_timeout = \"30s\" }."
  type        = map(string)
  default     = {}
}

variable "record" {
  description = "Further tables of the tenant's record, such as { quota = { max_clients = 200 } }."
  type        = any
  default     = {}
}

variable "on_destroy" {
  description = "What destroying it does: suspend (nobody gets in, all data stays), erase (there is no way back), or nothing."
  type        = string
  default     = "suspend"

  validation {
    condition     = contains(["suspend", "erase", "nothing"], var.on_destroy)
    error_message = "Write suspend, erase or nothing."
  }
}

variable "receipts_dir" {
  description = "Where an erased tenant's receipt goes, as <id>.json."
  type        = string
  default     = "."
}

variable "proxy" {
  description = "HOST:PORT of the running proxy, for the first login; empty for the first address of its configuration."
  type        = string
  default     = ""
}

variable "program" {
  description = "The pgtenant program."
  type        = string
  default     = "pgtenant"
}
