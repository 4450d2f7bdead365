"""Where policies are solved: devices by name, speed and memory; transfers. Imports networks."""
