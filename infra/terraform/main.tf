# Metaflow on AWS for this pipeline: S3, metadata service, AWS Batch with GPU machines, Step Functions, and the UI when a
# certificate is named. Everything is the modules'; ours are the settings below. Costs money from `apply` on, a few dollars a
# day without any run: the NAT gateway, the database and two small Fargate services.
#
# Tested: `terraform fmt`, checkov, and every argument and output against the modules' own source at these versions.
# Not tested: `terraform validate` and `apply`; the authors can reach neither Terraform's registry nor AWS.
terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.0"
    }
  }
}

provider "aws" {
  region = var.region
}

locals {
  tags = { project = "snapfusion", managed_by = "terraform" }
}

module "vpc" {
  # checkov:skip=CKV_TF_1: a module of the registry is pinned by its version
  source  = "terraform-aws-modules/vpc/aws"
  version = "5.21.0"

  name            = var.name
  cidr            = "10.10.0.0/16"
  azs             = ["${var.region}a", "${var.region}b"]
  public_subnets  = ["10.10.0.0/20", "10.10.16.0/20"]
  private_subnets = ["10.10.128.0/20", "10.10.144.0/20"]

  enable_nat_gateway   = true
  single_nat_gateway   = true
  enable_dns_hostnames = true

  tags = local.tags
}

module "metaflow" {
  # checkov:skip=CKV_TF_1: a module of the registry is pinned by its version
  source  = "outerbounds/metaflow/aws"
  version = "0.12.1"

  resource_prefix = var.name

  vpc_id          = module.vpc.vpc_id
  vpc_cidr_blocks = [module.vpc.vpc_cidr_block]
  subnet1_id      = module.vpc.private_subnets[0]
  subnet2_id      = module.vpc.private_subnets[1]
  with_public_ip  = false

  db_engine_version   = "15" # the modules' default, 11, is no longer offered
  db_instance_type    = "db.t4g.small"
  enable_key_rotation = true

  # Machines come with a run and go after it.
  compute_environment_instance_types     = var.instance_types
  compute_environment_min_vcpus          = 0
  compute_environment_desired_vcpus      = 0
  compute_environment_max_vcpus          = var.max_vcpus
  launch_template_http_tokens            = "required"
  enable_custom_batch_container_registry = true # for infra/docker's image

  enable_step_functions   = true
  access_list_cidr_blocks = var.allowed_cidr_blocks

  ui_certificate_arn = var.ui_certificate_arn
  ui_allow_list      = var.allowed_cidr_blocks

  tags = local.tags
}

output "metaflow_profile" {
  description = "Write it to ~/.metaflowconfig/config_snapfusion.json and run with METAFLOW_PROFILE=snapfusion."
  value       = module.metaflow.metaflow_profile_json
}

output "image_repository" {
  description = "Push infra/docker's image here and name it in [resources.default] image."
  value       = module.metaflow.metaflow_batch_container_image
}
