terraform {
  required_version = ">= 1.3"

  required_providers {
    docker = {
      source  = "kreuzwerker/docker"
      version = ">= 3.0, < 5.0"
    }
  }
}

provider "docker" {}
