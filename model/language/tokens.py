"""Token numbers of Qwen's tokenizers that the code itself needs (Qwen3-VL-8B-Instruct, tokenizer_config.json)."""

IMAGE_PAD_TOKEN = 151655
PAD_TOKEN = 151643
