"""Qwen-Image 2.x: transformer, autoencoder, sigmas, prompt template, and the names in its files."""
