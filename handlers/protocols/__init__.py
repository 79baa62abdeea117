"""Request rows <-> answers, in every protocol that the service speaks. service.py answers the rows of an inference
batch.
"""
