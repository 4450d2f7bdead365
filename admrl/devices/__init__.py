"""Where policies are solved: devices by name, by speed, by memory; recorded functions. Imports settings and networks."""
