"""What every command shares: command lines and their ends, files that appear whole. Imports nothing of ours, and never
travels in the .mar.
"""
