"""The course itself: claims, checks, figures, widgets and the runner."""

from minillm.course.claims import ClaimError, claim, claims_table, finding

__all__ = ["ClaimError", "claim", "claims_table", "finding"]
