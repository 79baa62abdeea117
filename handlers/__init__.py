"""What travels inside the .mar: from picture bytes to answers. Imports nothing from training/ or serving/."""
