"""`ucd-ray doctor`: what is wrong with an installation or a cluster, and how to mend it."""
