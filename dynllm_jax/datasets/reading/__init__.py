"""Reading files: formats, columns, values."""
