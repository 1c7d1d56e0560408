"""The looks of the chat: ember for hot experts (on the device), ice for cold ones (on the CPU).

Those of 16 colours name the terminal's own, which the user has chosen to be readable; shapes then replace shades.
"""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="edgemoe-dark",
    primary="#f2a65a",
    secondary="#7aa2d9",
    accent="#ffcf7d",
    success="#9ccf8a",
    warning="#e8b35a",
    error="#f07a78",
    foreground="#dde1e8",
    background="#14161b",
    surface="#1b1e25",
    panel="#252a33",
    dark=True,
    variables={
        "muted": "#8a93a3",
        "map-cold": "#424d60",
        "map-cool": "#6a8bb3",
        "map-warm": "#6b4324",
        "map-hot": "#f2a65a",
        "map-hit": "#ffe3a3",
        "map-miss": "#8fd3ff",
    },
)

LIGHT = Theme(
    name="edgemoe-light",
    primary="#b4581a",
    secondary="#2f62b5",
    accent="#8a5a00",
    success="#3f7d2c",
    warning="#94600a",
    error="#b3261e",
    foreground="#23262d",
    background="#fbf9f5",
    surface="#f3efe7",
    panel="#e6e0d4",
    dark=False,
    variables={
        "muted": "#6a6f7a",
        "map-cold": "#b9c0cc",
        "map-cool": "#7f9cc4",
        "map-warm": "#e9b482",
        "map-hot": "#d0701f",
        "map-hit": "#6b2400",
        "map-miss": "#0b4fb3",
    },
)


def _sixteen(name: str, dark: bool, hot: str, cold: str, bright: str, ink: str) -> Theme:
    """A look of the terminal's own colours; the terminal writes with ``ink`` on its ground."""
    return Theme(
        name=name,
        ansi=True,
        dark=dark,
        primary=f"ansi_{hot}",
        secondary=f"ansi_{cold}",
        accent=f"ansi_{hot}",
        success="ansi_green",
        warning=f"ansi_{hot}",
        error="ansi_red",
        foreground="ansi_default",
        background="ansi_default",
        surface="ansi_default",
        panel="ansi_default",
        boost="ansi_default",
        variables={
            "muted": f"ansi_{cold}",
            "text-muted": f"ansi_{cold}",
            "map-cold": f"ansi_{cold}",
            "map-cool": f"ansi_{cold}",
            "map-warm": f"ansi_{hot}",
            "map-hot": f"ansi_{hot}",
            "map-hit": f"ansi_{bright}",
            "map-miss": "ansi_magenta",
            "ansi-background": "ansi_black" if dark else "ansi_white",
            "ansi-foreground": f"ansi_{ink}",
            "block-cursor-foreground": "ansi_black",
            "block-cursor-background": f"ansi_{hot}",
            "border-blurred": f"ansi_{ink}",
            "input-cursor-background": f"ansi_{ink}",
            "input-cursor-foreground": "ansi_black" if dark else "ansi_white",
            "input-cursor-text-style": "none",
            "input-selection-background": f"ansi_{cold}",
            "input-selection-foreground": "ansi_black" if dark else "ansi_white",
            "screen-selection-background": f"ansi_{cold}",
            "screen-selection-foreground": "ansi_black" if dark else "ansi_white",
        },
    )


SIXTEEN = _sixteen("edgemoe-16", True, "yellow", "cyan", "bright_yellow", "white")
SIXTEEN_LIGHT = _sixteen("edgemoe-16-light", False, "red", "blue", "bright_red", "black")

LOOKS = {"dark": DARK, "light": LIGHT, "16": SIXTEEN, "16-light": SIXTEEN_LIGHT}
_OTHER = {DARK.name: LIGHT, LIGHT.name: DARK, SIXTEEN.name: SIXTEEN_LIGHT, SIXTEEN_LIGHT.name: SIXTEEN}


def chosen(look: str, colours: str | None) -> Theme:
    """The theme of a name of ``LOOKS``; for ``auto`` the one for a terminal of rich's colour system ``colours``."""
    return LOOKS.get(look) or (SIXTEEN if colours == "standard" else DARK)


def other(theme: Theme) -> Theme:
    """The light one of a dark theme, and the other way round."""
    return _OTHER.get(theme.name) or (LIGHT if theme.dark else DARK)


def nearest(theme: Theme) -> Theme:
    """The one of ours that a foreign theme is closest to."""
    return (SIXTEEN if theme.dark else SIXTEEN_LIGHT) if theme.ansi else (DARK if theme.dark else LIGHT)
