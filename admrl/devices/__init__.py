"""Where policies are solved: names of devices, which is faster, who has the memory. Imports settings and networks."""
