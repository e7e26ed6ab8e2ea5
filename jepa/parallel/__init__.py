"""Meshes, partition tables and attention by platform. Used by every room, imports none."""
