"""Devices and processes: the mesh, tables that share their rows over it."""
