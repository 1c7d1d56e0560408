"""The two looks of the chat: ember for what is hot (on the device), ice for what is cold (on the CPU)."""

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
        "map-cold": "#2b3340",
        "map-cool": "#5b7799",
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
        "map-cold": "#e8eaee",
        "map-cool": "#a3b6d0",
        "map-warm": "#e9b482",
        "map-hot": "#d0701f",
        "map-hit": "#6b2400",
        "map-miss": "#0b4fb3",
    },
)
