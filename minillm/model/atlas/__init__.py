"""The atlas: published language models as data, each a configuration of the one Transformer.

    from minillm.model.atlas import find
    find("DeepSeek-V3").total_parameters

`ATLAS` holds every entry by name, oldest first. To add a model, write an `Entry` into the file
of its era; `build` and the counts follow from its configuration.
"""

from __future__ import annotations

import difflib

from minillm.model.atlas import classics, dense, sparse, variants
from minillm.model.atlas.entry import Entry, error, printed
from minillm.model.atlas.formula import count_active, count_by_part, count_parameters
from minillm.model.atlas.words import describe, differences

ATLAS: dict[str, Entry] = {
    entry.name: entry
    for entry in sorted(
        classics.ENTRIES + dense.ENTRIES + variants.ENTRIES + sparse.ENTRIES,
        key=lambda entry: entry.date,
    )
}


def find(name: str) -> Entry:
    """The entry of this name, in any case of letters.

    Raises:
        ValueError: there is none; the message lists the closest names.
    """
    by_lower = {key.lower(): entry for key, entry in ATLAS.items()}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    close = difflib.get_close_matches(name.lower(), by_lower, n=4, cutoff=0.4)
    names = ", ".join(by_lower[key].name for key in close) or "nothing similar; see ATLAS"
    raise ValueError(f"no model {name!r} in the atlas; closest: {names}")


__all__ = [
    "ATLAS",
    "Entry",
    "count_active",
    "count_by_part",
    "count_parameters",
    "describe",
    "differences",
    "error",
    "find",
    "printed",
]
