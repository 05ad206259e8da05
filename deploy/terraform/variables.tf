variable "redis_image" {
  description = "Image of Redis."
  type        = string
  default     = "redis:7-alpine"
}

variable "redis_port" {
  description = "Port of Redis on this host; REDIS_ADDR is localhost and this port."
  type        = number
  default     = 6379

  validation {
    condition     = var.redis_port >= 1 && var.redis_port <= 65535
    error_message = "The port must be from 1 to 65535."
  }
}

variable "redis_password" {
  description = "Password of Redis; empty means none."
  type        = string
  default     = ""
  sensitive   = true
}

variable "corecast_enabled" {
  description = "Also start corecast, from the image that `make image` builds."
  type        = bool
  default     = false
}

variable "corecast_image" {
  description = "Image of corecast, there before terraform runs."
  type        = string
  default     = "corecast"
}

variable "corecast_preset" {
  description = "Whose users corecast serves."
  type        = string
  default     = "star"
}

variable "corecast_port" {
  description = "Port of corecast, in the container and on this host."
  type        = number
  default     = 8090

  validation {
    condition     = var.corecast_port >= 1 && var.corecast_port <= 65535
    error_message = "The port must be from 1 to 65535."
  }
}

variable "channel_name" {
  description = "CHANNEL_NAME: the channel that corecast listens to."
  type        = string
  default     = "broadcast.events"
}
