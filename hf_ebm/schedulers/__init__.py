"""Samplers, one per file, each with the diffusers contract: set_timesteps, timesteps, step."""
