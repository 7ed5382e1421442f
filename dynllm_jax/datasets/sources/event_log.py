"""Any event log: CSV, Parquet or JSON lines, with an optional item table."""

from dynllm_jax.datasets.reading import raw_log

files = raw_log.files
read = raw_log.read_configured
