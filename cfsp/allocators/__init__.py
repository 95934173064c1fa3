"""Allocators: how many units every site keeps under one budget."""
