"""Bytes of any picture -> uint8 (28, 28), upright, light on black. pipeline.py holds the steps in their order."""
