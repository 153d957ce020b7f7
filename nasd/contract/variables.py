"""The variables by which a launcher tells a process of an attempt whose it is, and where to meet.

Standard library alone: what starts the ranks lives as long as they do.
"""

TOKEN = "NASD_RUN_TOKEN"  # of the attempt; whatever carries it is ended with it
RENDEZVOUS = "NASD_RENDEZVOUS"  # the file by which ranks find each other, where there are several
