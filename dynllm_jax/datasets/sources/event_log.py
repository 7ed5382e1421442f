"""Any event log: CSV, Parquet, JSON lines or xlsx, also with an item table."""

from dynllm_jax.datasets.reading import raw_log

files = raw_log.files
read = raw_log.read_configured
