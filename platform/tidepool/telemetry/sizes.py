"""Sizes as people read them."""

from __future__ import annotations

UNITS = ("KB", "MB", "GB", "TB")
"""A thousand bytes, a thousand times as many, and so on, as the makers of disks count."""


def shown(size: float) -> str:
    """So many bytes, in the unit that fits.

    >>> shown(13_093)
    '13.1 KB'
    """
    power = 1
    while size / 1000**power >= 999.95 and power < len(UNITS):
        power += 1
    return f"{size / 1000**power:.1f} {UNITS[power - 1]}"
