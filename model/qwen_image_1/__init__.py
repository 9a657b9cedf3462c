"""Qwen-Image 1.x: transformer, autoencoder, sigmas, prompt templates, and the names in its files."""
