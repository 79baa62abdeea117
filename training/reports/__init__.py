"""What a run leaves for people: plots, pages, contact sheets, the model card, TensorBoard and where it all came
from.
"""
