"""What the autoencoder takes beside its weights; counted in tests/model/qwen_image_2/test_vae_memory.py."""
from ..runtime.vae_memory import VAEMemory
from .vae import CHUNK_BYTES

MEMORY = VAEMemory(small_values_per_pixel=1730, values_per_pixel=50, values=0, values_per_column=110_000,
                   chunks=24, chunk_bytes=CHUNK_BYTES)
