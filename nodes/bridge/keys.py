"""Names of the pack's own entries in ComfyUI's dictionaries, shared by those who write and those who read them."""

# The conditioning's entry that says which states of the prompt are image slots: ((first, count), ...).
SLOTS_KEY = "qwen_image_2_slots"
# The entry of transformer_options that takes sentences about a run: a function of one string.
REPORT_KEY = "qwen_image_2_report"
# The entry of transformer_options that says where the KV cache is tried first.
CACHE_LOCATION_KEY = "qwen_image_2_prefix_place"
