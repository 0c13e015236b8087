"""The tree as a user sees it, without FUSE: names, nodes, inodes, open files, reads."""
