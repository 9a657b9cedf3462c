"""Qwen-Image 2 in plain PyTorch: nothing in this package knows ComfyUI.

spec        frozen sizes of the three networks
layouts     the names that the weights carry in circulating files, as tables
checkpoint  names and shapes of a file -> spec and key table, or one sentence saying what the file is
files       safetensors files and folders -> names, shapes and memory-mapped tensors
quantised   which layers of a file are quantised, and how
transformer, rope, prefix, kernels   the diffusion transformer
vae, vae_layers, bands, latents      the autoencoder, its work in bands of rows, the scale of its latents
frozen, cache               weights that are drawn instead of stored, and where they are kept
schedule, sizes, prompt              sigmas, picture sizes, the prompt template
"""
