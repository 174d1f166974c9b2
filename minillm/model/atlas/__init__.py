"""The atlas: published language models as data, each a configuration of the one Transformer.

    from minillm.model.atlas import find
    find("DeepSeek-V3").total_parameters

`ATLAS` holds every entry by name, oldest first. To add a model, write an `Entry` into the file
of its era; `build` and the counts follow from its configuration.
"""

from __future__ import annotations

import difflib
import re

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
    """The entry of this name, or the only one whose name begins so.

    Case, spaces, dashes and a Greek α do not matter: "llama 2 70b" is "Llama-2-70B".

    Raises:
        ValueError: there is none, or several begin so; the message lists those that may be meant.
    """
    entries, wanted = {_letters(key): entry for key, entry in ATLAS.items()}, _letters(name)
    if wanted in entries:
        return entries[wanted]
    begun = [entry for key, entry in entries.items() if wanted and key.startswith(wanted)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        names = ", ".join(entry.name for entry in begun)
        raise ValueError(f"{name!r} may be one of {len(begun)} models of the atlas: {names}")
    close = difflib.get_close_matches(wanted, entries, n=4, cutoff=0.4)
    names = ", ".join(entries[key].name for key in close) or "nothing similar; see ATLAS"
    raise ValueError(f"no model {name!r} in the atlas; closest: {names}")


def _letters(name: str) -> str:
    """What of a name counts when two are compared: "PanGu-α 2.6B" → "pangualpha2.6b"."""
    return re.sub(r"[\s_-]", "", name.lower().replace("α", "alpha"))


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
