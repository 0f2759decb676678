"""Keys of servers stay out of logs, files and errors."""

from __future__ import annotations


def without_key(text: str, secret: str) -> str:
    """The text without the key or the parts of it that servers repeat when they refuse one."""
    if not secret:
        return text
    text = text.replace(secret, "***")
    if len(secret) >= 12:
        for part in (secret[:8], secret[-4:]):
            text = text.replace(part, "***")
    return text
