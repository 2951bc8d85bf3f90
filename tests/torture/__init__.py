"""The torture: the server is killed again and again under load, and a program apart says whether every count survived.

`killed_server` is the real server with one point at which it kills itself, `load` the callers and the clients,
`rounds` starts one after the other, `checker` judges what they wrote down. `python -m tests.torture` is the long run.
"""
