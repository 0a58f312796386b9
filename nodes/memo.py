"""What nodes made last. The host runs a node again when anything before it changed, also what it makes no use of: a LoRA for
another stage on the same stack, or the texture where only the mesh is looked at. Then the last result is handed out again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from typing import Any, TypeVar

KEPT = 12
"""Results that are kept, the youngest ones: a graph or two."""

T = TypeVar("T")
_kept: OrderedDict[Hashable, tuple[Hashable, tuple[Any, ...], Any]] = OrderedDict()
_lock = Lock()


def remembered(who: Hashable, key: Hashable, inputs: Sequence[Any], make: Callable[[], T]) -> T:
    """The last result of `who`, if it was made with an equal key of the very same inputs; else a new one.

    Args:
        who: node and part of it.
        key: everything that the result depends on beside the inputs.
        inputs: values of other nodes, which never change; they are compared by identity.
    """
    with _lock:
        known = _kept.get(who)
    if (
        known
        and known[0] == key
        and len(known[1]) == len(inputs)
        and all(a is b for a, b in zip(known[1], inputs, strict=True))
    ):
        return known[2]
    made = make()
    with _lock:
        _kept.pop(who, None)
        _kept[who] = key, tuple(inputs), made
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return made


def stage_key(family: Any, stage: str, settings: Any, names: Sequence[str] = ()) -> Hashable:
    """What a sampled stage depends on: networks, LoRAs on them, the sampler's settings, and settings by name."""
    from ..trellis_core.roles import FLOW_STAGE
    from ..trellis_core.sampling import sampler_values

    roles = [role for role in family.networks if FLOW_STAGE.get(role) == stage]
    networks = tuple((role, family.networks[role], family.networks[role].file.stat().st_mtime_ns) for role in roles)
    loras = tuple((role, use.adapter.digest, use.strength) for role in roles for use in family.loras.get(role, ()))
    values = sampler_values(settings, stage, family.samplers[stage].params)
    return family.name, networks, loras, tuple(values.items()), tuple((name, getattr(settings, name)) for name in names)
