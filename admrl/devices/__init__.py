"""Where policies are solved: devices by name, speed and memory; transfers; recorded functions. Imports networks."""
