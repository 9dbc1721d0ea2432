"""Measurements that end with one JSON line each."""
