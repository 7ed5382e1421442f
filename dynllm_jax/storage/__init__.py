"""Files that survive a crash: stores, locks, folders, buckets."""
