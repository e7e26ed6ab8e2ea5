"""Meshes, partition tables and attention by platform; used by every room, imports none."""
