"""What devices make of the formats that weights are stored in."""
from ....messages import Message

# Formats that are dequantised on every device: torch multiplies no two e5m2 matrices.
NEVER_NATIVE = {"gguf", "float8_e5m2"}
# Formats whose matrices are multiplied as integers.
INTEGERS = {"int8_tensorwise", "convrot_w4a4"}


def computed_in_integers(weights: str) -> Message:
    return Message("weights_integers", "{weights}, computed in integers", weights=weights)
