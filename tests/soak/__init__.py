"""Whole searches under kills and faults: does what comes out depend on them?"""
