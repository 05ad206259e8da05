output "redis_addr" {
  description = "REDIS_ADDR for programs on this host."
  value       = "localhost:${var.redis_port}"
}

output "corecast_url" {
  description = "Where WebSocket clients connect; null without corecast."
  value       = var.corecast_enabled ? "ws://localhost:${var.corecast_port}/ws" : null
}
