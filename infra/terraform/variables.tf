variable "region" {
  description = "AWS region."
  type        = string
}

variable "name" {
  description = "Begins the name of everything that is made."
  type        = string
  default     = "snapfusion"
}

variable "instance_types" {
  description = "Machines of AWS Batch. One card of 24 GB runs configs/sd15_1gpu.toml with smaller batches; g5 has an A10G."
  type        = list(string)
  default     = ["g5.2xlarge", "g5.4xlarge"]
}

variable "max_vcpus" {
  description = "Upper bound of what runs at once, and so of what an hour costs. Three stages can train at the same time."
  type        = number
  default     = 24
}

variable "allowed_cidr_blocks" {
  description = "Who may reach the metadata service and the UI, such as the office's addresses."
  type        = list(string)
}

variable "ui_certificate_arn" {
  description = "Certificate of the UI's load balancer; \"\" makes no UI."
  type        = string
  default     = ""
}
