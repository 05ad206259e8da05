# Redis in Docker for publishers and subscribers that run on this host, and corecast beside it if asked:
#
#   terraform init && terraform apply
#   terraform apply -var corecast_enabled=true
#   redis-cli -p 6379 ping

resource "docker_network" "corecast" {
  name = "corecast"
}

resource "docker_image" "redis" {
  name         = var.redis_image
  keep_locally = true
}

resource "docker_container" "redis" {
  name    = "corecast-redis"
  image   = docker_image.redis.image_id
  restart = "unless-stopped"

  # Nothing of corecast's is worth keeping on disk. No protected mode: the port below is this host's own.
  command = [
    "sh", "-c",
    "exec redis-server --save '' --appendonly no --protected-mode no --requirepass \"$REDIS_PASSWORD\"",
  ]
  env = ["REDIS_PASSWORD=${var.redis_password}"]

  networks_advanced {
    name    = docker_network.corecast.name
    aliases = ["redis"]
  }

  ports {
    internal = 6379
    external = var.redis_port
    ip       = "127.0.0.1"
  }

  healthcheck {
    test     = ["CMD-SHELL", "REDISCLI_AUTH=\"$REDIS_PASSWORD\" redis-cli ping | grep -q PONG"]
    interval = "5s"
    timeout  = "2s"
    retries  = 3
  }

  wait = true
}

resource "docker_container" "corecast" {
  count = var.corecast_enabled ? 1 : 0

  name    = "corecast"
  image   = var.corecast_image
  restart = "unless-stopped"
  command = ["serve", "--preset", var.corecast_preset]

  env = [
    "PORT=${var.corecast_port}",
    "REDIS_ADDR=redis:6379",
    "REDIS_PASSWORD=${var.redis_password}",
    "CHANNEL_NAME=${var.channel_name}",
  ]

  networks_advanced {
    name = docker_network.corecast.name
  }

  ports {
    internal = var.corecast_port
    external = var.corecast_port
  }

  # The provider hands Docker the profile itself, not its path. It is Docker's own plus the three calls of io_uring.
  security_opts = [
    "seccomp=${file("${path.module}/../seccomp-io_uring.json")}",
    "no-new-privileges=true",
  ]
  read_only = true

  capabilities {
    drop = ["ALL"]
  }

  ulimit {
    name = "nofile"
    soft = 1048576
    hard = 1048576
  }

  # SIGTERM begins the drain of 10 s.
  destroy_grace_seconds = 20

  depends_on = [docker_container.redis]
}
