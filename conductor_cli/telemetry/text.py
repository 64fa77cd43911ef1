"""Making any value fit for a line: without passwords, control characters or endless length."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Final

_URL_PASSWORD: Final = re.compile(r"(://[^\s:/@]{0,256}:)\S{0,1024}@")
_PASSWORD: Final = re.compile(r"(?i)(password\s*=\s*)(?:'(?:\\.|[^'\\])*'|[^\s&\"']+)")
_PLAIN: Final = re.compile(r"[^\s\"'=\\]+")
_LONGEST: Final = 8_192


def redact(text: str) -> str:
    """``text`` without the passwords of URLs (``://user:***@``) and of ``password=...``."""
    return _PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1***@", text))


def may_hold_password(text: str) -> bool:
    """Quick: whether `redact` could find anything."""
    return "://" in text or "assword" in text or "ASSWORD" in text


def clean(value: object, depth: int = 5) -> object:
    """``value`` without passwords, cut to size, certain to be JSON. Slow: only when needed."""
    if depth and isinstance(value, Mapping):
        pairs = list(value.items())[:100]
        return {safe(of(key)): clean(inner, depth - 1) for key, inner in pairs}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [clean(inner, depth - 1) for inner in list(value)[:100]]
    if value is None or isinstance(value, int) or (isinstance(value, float) and isfinite(value)):
        return value
    return safe(of(value))


def safe(text: str) -> str:
    """Without passwords, and cut in the middle if very long (where a password may stand too)."""
    if len(text) <= _LONGEST:
        return redact(text)
    half = _LONGEST // 2
    head, tail = redact(text[:_LONGEST])[:half], redact(text[-_LONGEST:])[-half:]
    return f"{head} [... {len(text) - _LONGEST} characters cut ...] {tail}"


def pairs(fields: Mapping[str, object]) -> str:
    """`` key=value`` for each, in one line whatever they hold."""
    return "".join(f" {bare(str(key))}={_quoted(value)}" for key, value in fields.items())


def bare(text: str) -> str:
    """``text`` as it is, or with its control characters escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


def of(value: object) -> str:
    """``str(value)``, or a word for what cannot be printed."""
    try:
        return str(value)
    except Exception:
        return f"<unprintable {type(value).__name__}>"


def _quoted(value: object) -> str:
    text = of(value)
    return text if _PLAIN.fullmatch(text) and text.isprintable() else repr(text)
