"""Event logs: sources, preparation, and the store of prepared logs.

What happens to an event's time, in order: `reading/file_formats.py`, with
`reading/delimited.py` for text, reads its cell; `reading/columns_by_role.py`
leaves out rows that are not wanted; `reading/time_columns.py` makes it unix
seconds; `reading/raw_log.py` stops at a bad one; `prepare.py` sorts events by
it and counts it from the first one; `log_store.py` keeps it. `loading.py` calls
these in turn. From the `EventLog`, `graph/inputs.py` takes it to the device.
"""
