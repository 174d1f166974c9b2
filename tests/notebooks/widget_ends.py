"""Every lesson's kernel imports this in the tests: no end of a slider may fail.

A figure under `interact` is drawn once when a lesson runs. A learner moves its sliders and menus,
so here each goes to both its ends, the others staying where they are. An error fails the cell.
"""

import ipywidgets
from IPython.utils.capture import capture_output

interact = ipywidgets.interact


def ends(control) -> list:
    """The first and last choice of a menu, the least and greatest value of a slider."""
    if hasattr(control, "_options_values"):
        return [control._options_values[i] for i in (0, -1)]
    if isinstance(control, ipywidgets.FloatLogSlider):
        return [control.base**control.min, control.base**control.max]
    if hasattr(control, "min"):
        return [control.min, control.max]
    return [False, True] if isinstance(control.value, bool) else []


def interact_at_every_end(function, **abbreviations):
    drawn = interact(function, **abbreviations)
    controls = drawn.widget.kwargs_widgets
    settings = {control._kwarg: control.value for control in controls}
    for control in controls:
        for end in ends(control):
            with capture_output():
                function(**settings | {control._kwarg: end})
    return drawn


ipywidgets.interact = interact_at_every_end
