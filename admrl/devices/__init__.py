"""Where policies are solved: devices by name, speed and memory; recorded functions. Imports settings and networks."""
