"""The adapter to FUSE: translation, errno, mounting, the session. Only this room knows pyfuse3."""
