"""Tests of the engines and parcels."""
