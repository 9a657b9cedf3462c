"""What is wrong with a file, in sentences that several rooms say."""
from ...messages import Refusal


class CheckpointError(Refusal):
    """A file that cannot be used. The message is one sentence for the user: which file, what it is, what to do."""


def missing_tensor(file: str, tensor: str) -> CheckpointError:
    return CheckpointError("tensor_missing", "{file} is incomplete: tensor {tensor} is missing.", file=file,
                           tensor=tensor)


def invalid_shape(file: str, tensor: str, shape: tuple[int, ...]) -> CheckpointError:
    return CheckpointError("tensor_shape_invalid", "{file}: tensor {tensor} has invalid shape {shape}.",
                           file=file, tensor=tensor, shape=str(list(shape)))
