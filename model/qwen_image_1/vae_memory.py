"""What the autoencoder takes beside its weights; counted in tests/model/qwen_image_1/test_vae_memory.py."""
from ..runtime.vae_memory import VAEMemory
from .vae import CHUNK_BYTES

MEMORY = VAEMemory(small_values_per_pixel=700, values_per_pixel=60, values=110 * 10**6, values_per_column=20_000,
                   chunks=18, chunk_bytes=CHUNK_BYTES)
