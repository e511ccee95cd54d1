output "id" {
  description = "The tenant's id, known once it is there."
  value       = terraform_data.life.output.id
  depends_on  = [terraform_data.description]
}

output "life" {
  description = "Changes when it is made anew."
  value       = terraform_data.life.id
}

output "credentials" {
  description = "The file with its passwords, as written when it was made."
  value       = "${var.credentials_dir}/${var.id}.credentials"
}

output "description" {
  description = "What `pgtenant tenant apply` was given."
  value       = local.description
}
