"""Everything that is ComfyUI's: no other room imports its modules. The rest of the pack calls what is listed here."""

from .files import (
    below,
    blocked,
    check_file,
    check_prefix,
    offer_examples,
    output_file,
    stamp,
    temporary_file,
    user_file,
    workflow_extras,
)
from .run import PICTURE_SIDE, Run, context, shown, tell
from .weights import (
    PRECISIONS,
    add_weights_folder,
    family_names,
    family_stamp,
    lora_names,
    lora_path,
    lora_stamp,
    open_family,
)

__all__ = [
    "PICTURE_SIDE",
    "PRECISIONS",
    "Run",
    "add_weights_folder",
    "below",
    "blocked",
    "check_file",
    "check_prefix",
    "context",
    "family_names",
    "family_stamp",
    "lora_names",
    "lora_path",
    "lora_stamp",
    "offer_examples",
    "open_family",
    "output_file",
    "shown",
    "stamp",
    "tell",
    "temporary_file",
    "user_file",
    "workflow_extras",
]
