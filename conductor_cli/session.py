"""What each session of ours is set to, whatever the server, the role, the database, a service file
or the environment say.

A setting is in this list when the meaning of one of our statements, the reading of its rows, its
plan or the life of its session depends on it. Not in it is what is the owner's to tune: memory
above what we need, costs, where tables are kept, ``synchronous_commit``, logging.
"""

from __future__ import annotations

from typing import Final

ENCODING: Final = "UTF8"
"""Of every connection: given with the first message, which beats role, database and environment."""

SETTINGS: Final = {
    # What a statement means.
    "search_path": "public, pg_temp",  # pg_catalog comes first; ours are qualified
    "array_nulls": "on",
    "backslash_quote": "safe_encoding",
    "check_function_bodies": "on",
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "escape_string_warning": "on",
    "plpgsql.extra_errors": "none",
    "plpgsql.extra_warnings": "none",
    "quote_all_identifiers": "off",
    "restrict_nonsystem_relation_kind": "",
    "row_security": "on",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "xmloption": "content",
    # How values are written and read.
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "lc_time": "C",
    # What ends a session or a transaction; our own limits are added to these.
    "client_min_messages": "warning",
    "exit_on_error": "off",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
    # How it is planned. No plan of ours reads a table from end to end: see docs/architecture.md.
    "constraint_exclusion": "partition",
    "debug_parallel_query": "off",
    "force_parallel_mode": "off",
    "enable_bitmapscan": "on",
    "enable_hashagg": "on",
    "enable_hashjoin": "on",
    "enable_incremental_sort": "on",
    "enable_indexonlyscan": "on",
    "enable_indexscan": "on",
    "enable_material": "on",
    "enable_memoize": "on",
    "enable_mergejoin": "on",
    "enable_nestloop": "on",
    "enable_seqscan": "off",
    "enable_sort": "on",
    "enable_tidscan": "on",
    "from_collapse_limit": "8",
    "geqo": "on",
    "geqo_threshold": "12",
    "jit": "off",
    "join_collapse_limit": "8",
}

LEAST_MEMORY: Final = "4MB"
"""``work_mem``, where it is less: below, sorts of a batch go to the disk."""


def statement_limits(statement_timeout: float) -> dict[str, str]:
    """The limits of our statements; the timeout in seconds."""
    return {
        "statement_timeout": f"{int(statement_timeout * 1000)}ms",
        "lock_timeout": "10s",
        "idle_in_transaction_session_timeout": "60s",
    }
