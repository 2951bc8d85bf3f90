"""HTTP: what reads requests and writes answers. Tornado lives here and in server.py, nowhere else."""
