"""Tenants, their limits, and admission."""
