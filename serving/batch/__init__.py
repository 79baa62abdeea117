"""A folder of pictures -> CSV. run.py is the whole flow."""
