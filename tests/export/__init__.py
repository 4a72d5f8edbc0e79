"""Tests of ckptkit.export."""
