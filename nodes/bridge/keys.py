"""Names that those who write and those who read share: the pack's own entries in ComfyUI's dictionaries, families."""

# The conditioning's entry that says where the references go: a list of how many states of the prompt stand before each.
# The name and the form are those of ComfyUI's own Qwen-Image 2.1 (comfy/text_encoders/qwen_image21.py), so that its
# nodes and the pack's take each other's conditioning.
SLOTS_KEY = "image_slots"
# The conditioning's entry that says how much of single references is looked at: a dict of their numbers, from 1 on, to
# (strength, mask (H, W) or None).
REFERENCE_WEIGHTS_KEY = "qwen_image_2_reference_weights"
# The conditioning's entry that says whether references stand with their centres on the target's.
CENTRED_KEY = "qwen_image_2_centred"
# The entry of transformer_options that takes sentences about a run: a function of one string.
REPORT_KEY = "qwen_image_2_report"
# The entry of transformer_options that says where the KV cache is tried first.
CACHE_LOCATION_KEY = "qwen_image_2_prefix_place"
# The entries of transformer_options for a run by tiles (tiled.py): the shape of what one pass computes, for the whole
# run; and for each pass which tiles those are.
PASS_SHAPE_KEY = "qwen_image_2_pass_shape"
TILES_KEY = "qwen_image_2_tiles"

# The two families of models, in messages after "Qwen-Image ".
FAMILY_1, FAMILY_2 = "1.x", "2.x"
