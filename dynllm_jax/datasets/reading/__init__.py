"""Reading files: formats, columns, ids, texts and times."""
